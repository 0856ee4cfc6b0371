"""Closed-loop load over real gRPC, what it recorded, and pure statistics over the records.

`client` does all the I/O; `records`, `statistics` and `verify` are pure, so figures can be
recomputed from a stored run.
"""

from .client import ClosedLoop, LoadPlan, channel_to, measure, send
from .records import RequestRecord, Workload, load_examples
from .verify import Acknowledgement, RouteHistory, RouteStep, wrong_version

__all__ = [
    "Acknowledgement",
    "ClosedLoop",
    "LoadPlan",
    "RequestRecord",
    "RouteHistory",
    "RouteStep",
    "Workload",
    "channel_to",
    "load_examples",
    "measure",
    "send",
    "wrong_version",
]
