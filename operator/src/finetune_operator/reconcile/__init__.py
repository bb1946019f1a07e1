"""What should happen next: observe (cluster) -> decide (pure) -> apply (cluster). Knows nothing of kopf or of events."""
