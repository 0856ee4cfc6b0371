"""Batched LoRA: every token of a step gets its own adapter's delta, at the adapter's true rank."""
