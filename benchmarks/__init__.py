"""Benchmarks of lorebase: a load generator, the suites and one runner for all of them."""
