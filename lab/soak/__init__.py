"""A real server under overload, rude clients and draining."""
