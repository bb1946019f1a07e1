"""The base model and its adapter: loading, LoRA, quantization, continuation and the fingerprint."""
