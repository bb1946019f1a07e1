"""Reconciles: observe (cluster) -> decide (pure) -> act (cluster) -> report (pure) -> write. Knows nothing of kopf or of watches."""
