"""What a process of the trainer is told before anything else."""

import subprocess
import sys

REPORT = "import gc; print(gc.isenabled(), gc.get_freeze_count() > 0)"
PREPARED = "from finetune_trainer.runtime.environment import *; prepare_environment(); "
IMPORTED = "from finetune_model.process import resume_garbage_collection; resume_garbage_collection(); "


def output_of(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


def test_garbage_is_not_collected_while_modules_are_imported() -> None:
    assert output_of(PREPARED + REPORT) == ["False", "False"]


def test_what_was_imported_is_not_looked_through_again() -> None:
    assert output_of(PREPARED + IMPORTED + REPORT) == ["True", "True"]


def test_a_program_that_uses_the_pipeline_keeps_its_own_collector() -> None:
    assert output_of(IMPORTED + REPORT) == ["True", "False"]
