"""Memory of a training: its estimate, its plan, and smaller micro-batches once memory is exhausted."""
