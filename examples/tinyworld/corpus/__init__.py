"""Procedural pre-training corpus of the tiny world: one module per group of task families."""
