"""How others see a run: progress, trackers, the record and the report."""
