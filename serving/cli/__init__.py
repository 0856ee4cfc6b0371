"""Command line and Python client of lorebase: gRPC clients only, no server part.

Importing this package imports nothing heavy; `client.LorebaseClient` is also what the demo and
the benchmarks use.
"""
