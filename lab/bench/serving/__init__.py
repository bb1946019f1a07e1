"""Serving speed, parity and adapter swaps."""
