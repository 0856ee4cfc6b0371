"""lorebase's LoRA kernels inside an unforked vLLM; the only place that knows vLLM's internals."""
