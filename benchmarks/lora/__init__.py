"""Benchmarks of LoRA inside real vLLM: files made on the fly, engines in child processes."""
