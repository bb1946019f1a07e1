"""The volume: the commit protocol, the fencing token and the output directory."""
