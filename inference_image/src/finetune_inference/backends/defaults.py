"""Defaults of both engines: how much they compute in a step and keep, unless a setting says otherwise."""

PREFILL_TOKENS = {"cpu": 128, "cuda": 2048}
"""Prompt tokens per step: those who answer wait for them. With 135 million parameters and two threads, 128 take a quarter of a
second and 256 half of one; a long prompt takes a tenth longer for it, and 32 sequences of eight adapters a seventh. It also bounds
the logits of a scored prompt: 2048 x 150,000 floats are 1.2 GB."""
CACHE_SHARE = 4
"""A quarter of the memory that the model leaves is for keys and values, unless a setting says otherwise."""
NOT_NUMBERS = "the model computes values that are not numbers"
