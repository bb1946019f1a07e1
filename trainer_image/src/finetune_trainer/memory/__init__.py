"""The memory plan of a training, and its fallback when memory runs out."""
