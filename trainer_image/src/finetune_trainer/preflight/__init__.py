"""What `validate` finds out before an accelerator is asked for."""

from finetune_trainer.preflight.checks import Preflight, run_preflight

__all__ = ["Preflight", "run_preflight"]
