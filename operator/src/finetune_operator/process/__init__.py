"""The process beside its work: health, logs and metrics."""
