"""The calls, one module for each family."""
