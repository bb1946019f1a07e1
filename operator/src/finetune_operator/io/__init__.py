"""Everything that leaves the process: the API server, the endpoints that are probed, Redis."""
