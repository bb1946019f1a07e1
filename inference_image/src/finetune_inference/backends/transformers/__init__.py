"""The default engine: batched generation with transformers, and an adapter per sequence."""
