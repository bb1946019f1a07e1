"""Held-out loss, generated predictions and the metrics that compare them with references."""
