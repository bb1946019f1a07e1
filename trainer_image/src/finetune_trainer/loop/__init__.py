"""Training loop: the Trainer subclasses, objectives, divergence checks and checkpoints."""
