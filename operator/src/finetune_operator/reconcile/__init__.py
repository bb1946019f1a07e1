"""Reconciles: observe (cache) -> decide (pure) -> act (cluster) -> report (pure) -> write. Knows nothing of watches."""
