"""Adapters: verification of their files, the watched list, the registry of names and promotion."""
