"""Evaluation: held-out loss, generated predictions, and metrics that compare them with references."""
