"""The process: environment, ranks, stop signals, logging and the termination message."""
