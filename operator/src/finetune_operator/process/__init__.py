"""Health, logs and metrics of the operator's process."""
