"""The demo: many adapters move to another base while clients keep calling them."""
