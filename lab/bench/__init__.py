"""Benchmarks against the strongest peers, each one command."""
