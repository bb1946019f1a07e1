"""Interface to the engines, and the scheduler that owns one."""
