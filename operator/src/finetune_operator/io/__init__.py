"""Clients of everything outside the process: the API server, the probed endpoints, Redis."""
