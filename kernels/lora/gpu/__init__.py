"""The GPU's grouped LoRA kernels in Triton: shrink, expand, and both in one for decoding."""
