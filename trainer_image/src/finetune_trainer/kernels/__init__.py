"""Attention, LoRA, normalization and loss kernels of our own."""
