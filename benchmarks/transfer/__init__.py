"""Suite `transfer`: how much of an adapter's skill each recipe brings to the next base."""
