"""A real single-node Kubernetes on this machine, built from source: `python3 -m lab.kubernetes up`. Standard library only."""
