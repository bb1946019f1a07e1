"""Preflight: every check of a run that needs no accelerator."""

from finetune_trainer.preflight.attempt import validate_attempt
from finetune_trainer.preflight.checks import Preflight, run_preflight
from finetune_trainer.preflight.summary import describe

__all__ = ["Preflight", "describe", "run_preflight", "validate_attempt"]
