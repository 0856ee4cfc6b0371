"""The GPU kernels beside vLLM's and SGLang's own: shapes, providers, timing, results, tuner."""
