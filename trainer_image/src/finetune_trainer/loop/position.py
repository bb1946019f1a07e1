"""Position of a training: its step, its newest checkpoint and the tokens trained so far."""

from dataclasses import dataclass


@dataclass
class TrainingPosition:
    """Progress of a run, for the Outcome of a run that ends early."""

    step: int = 0
    """Last finished step."""
    checkpoint_step: int | None = None
    """Step of the newest committed checkpoint."""
    trained_tokens: int = 0
    """Tokens trained by this attempt, without padding."""
