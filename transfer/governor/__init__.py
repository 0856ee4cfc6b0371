"""Decides how much background work may run now, from the foreground's load."""

from .governor import Governor
from .leases import Lease, LeaseKind, LeaseTable
from .policy import Capacity, GovernorPolicy, GovernorState, LoadSample, capacity, start, step
from .probe import Probe, StatsSource

__all__ = [
    "Capacity",
    "Governor",
    "GovernorPolicy",
    "GovernorState",
    "Lease",
    "LeaseKind",
    "LeaseTable",
    "LoadSample",
    "Probe",
    "StatsSource",
    "capacity",
    "start",
    "step",
]
