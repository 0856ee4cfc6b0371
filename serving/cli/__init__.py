"""Command line and Python client of lorebase: gRPC clients only, no server part.

Importing this package imports nothing heavy; `client.LorebaseClient` is also what the demo and
the benchmarks use.
"""

DEFAULT_ENDPOINT = "127.0.0.1:19000"
"""Where a gateway on this machine answers gRPC."""
