"""Reporting: progress while training runs, trackers, the record and the report."""
