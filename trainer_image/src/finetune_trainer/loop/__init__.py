"""The training loop: Trainer subclasses, objectives, divergence checks and checkpoints."""
