"""Upgrades: state tables, pure advance, stages, reconciler, and the gRPC service over them."""
