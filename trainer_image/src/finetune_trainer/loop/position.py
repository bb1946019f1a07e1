"""How far a training has come."""

import logging
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass
class TrainingPosition:
    """How far a run is; what an Outcome says about a run that ended early."""

    step: int = 0
    checkpoint_step: int | None = None
    trained_tokens: int = 0
    """Real tokens (no padding) trained by this attempt."""
