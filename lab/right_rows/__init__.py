"""Rows as people have them, each with its right value: what is learnt, or why it is refused. `make check-data` runs all."""
