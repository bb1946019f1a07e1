"""The default engine: batched generation with transformers, LoRA by row."""
