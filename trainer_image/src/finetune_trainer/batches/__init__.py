"""Batches: sampling of rows, and their layout (packed or padded)."""
