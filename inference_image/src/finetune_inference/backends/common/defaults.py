"""Defaults of both engines: tokens per step, and the share of memory for the KV cache."""

PREFILL_TOKENS = {"cpu": 128, "cuda": 2048}
"""Prompt tokens per step (chunked prefill), by device. Sequences in decode wait for them: with 135 million parameters and two
threads, 128 tokens take a quarter of a second and 256 half a second. The price of small chunks: a long prompt takes a tenth
longer, and 32 sequences of eight adapters a seventh. The number also bounds the logits of a scored prompt: 2048 x 150,000
floats are 1.2 GB."""
CACHE_SHARE = 4
"""The KV cache gets one part in this many of the memory beside the model, unless a setting gives its size."""
NOT_FINITE = "the model computes values that are not finite numbers"
