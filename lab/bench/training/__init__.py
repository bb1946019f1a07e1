"""Training speed, memory and parity."""
