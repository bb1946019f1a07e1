"""Checkpoints while training goes on: what is in them, who writes them, and when."""

import threading
from pathlib import Path
from typing import Any

import pytest

from finetune_api.artifacts import Manifest
from finetune_api.reasons import Reason
from finetune_trainer.errors import TrainingError
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.store.run_store import Committed, RunStore
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.reporters import AtStep, OnStep
from lab.fixtures.training_runs import a_training_config

pytestmark = pytest.mark.model


def interrupted_after(step: int, config: Any) -> Committed:
    """The newest checkpoint of a run that was stopped after a step."""
    stop = StopSignal()
    pipeline = FinetuningPipeline(config, reporter=AtStep(step, stop.request), stop=stop)
    with pytest.raises(TrainingError) as caught:
        pipeline.run()
    assert caught.value.reason is Reason.INTERRUPTED
    checkpoint = pipeline.store.newest_checkpoint()
    assert checkpoint is not None
    return checkpoint


def test_a_checkpoint_holds_all_that_a_run_needs_to_go_on(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import TrainerState

    checkpoint = interrupted_after(5, a_training_config(tiny_model, tmp_path))
    assert [entry.path for entry in checkpoint.manifest.files] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    ]
    assert (checkpoint.manifest.kind, checkpoint.manifest.step, checkpoint.manifest.job_uid) == (
        "checkpoint",
        5,
        "uid-1",
    )
    adapter = load_file(checkpoint.path / "adapter_model.safetensors")
    optimizer = torch.load(checkpoint.path / "optimizer.pt", weights_only=True)
    assert len(optimizer["state"]) == len(adapter)
    state = TrainerState.load_from_json(str(checkpoint.path / "trainer_state.json"))
    assert (state.global_step, state.max_steps) == (5, 6)


def test_stock_peft_loads_the_adapter_of_a_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    checkpoint = interrupted_after(3, a_training_config(tiny_model, tmp_path))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), checkpoint.path)
    written = load_file(checkpoint.path / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(model)
    assert written.keys() == loaded.keys()
    assert all(bool((written[name] == loaded[name]).all()) for name in written)


def test_the_next_step_is_computed_while_a_checkpoint_is_written_and_applied_once_it_is_committed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_trainer.loop.step_trainer import StepTrainer

    events: list[str] = []
    computing = threading.Event()
    commit, compute = RunStore.commit_checkpoint, StepTrainer.training_step

    def commit_during_the_next_step(self: RunStore, staged: Path, manifest: Manifest) -> Committed:
        if manifest.step == 2:
            assert computing.wait(60), "training stood still until the checkpoint was written"
        committed = commit(self, staged, manifest)
        events.append(f"checkpoint {manifest.step}")
        return committed

    def announced(self: StepTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, *args, **kwargs)
        if self.state.global_step == 2:
            computing.set()
        return loss

    monkeypatch.setattr(RunStore, "commit_checkpoint", commit_during_the_next_step)
    monkeypatch.setattr(StepTrainer, "training_step", announced)
    hyperparameters = {"batchSize": 4, "learningRate": 0.01, "maxSteps": 4}
    config = a_training_config(tiny_model, tmp_path, hyperparameters=hyperparameters)
    FinetuningPipeline(config, reporter=OnStep(lambda progress: events.append(f"step {progress.step}"))).run()
    assert events == ["step 1", "step 2", "checkpoint 2", "step 3", "step 4", "checkpoint 4"]


def test_a_checkpoint_that_a_pass_left_no_memory_for_is_written_after_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = RunStore.commit_checkpoint
    written: list[tuple[int, bool]] = []

    def beside_a_large_pass(self: RunStore, staged: Path, manifest: Manifest) -> Committed:
        beside = threading.current_thread() is not threading.main_thread()
        written.append((manifest.step, beside))
        if beside and manifest.step == 2:
            raise MemoryError
        return commit(self, staged, manifest)

    monkeypatch.setattr(RunStore, "commit_checkpoint", beside_a_large_pass)
    hyperparameters = {"batchSize": 4, "learningRate": 0.01, "maxSteps": 5}
    checkpoint = interrupted_after(3, a_training_config(tiny_model, tmp_path, hyperparameters=hyperparameters))
    assert written == [(2, True), (2, False), (3, True)]
    assert checkpoint.manifest.step == 3


def test_a_checkpoint_is_due_by_the_clock_too() -> None:
    from transformers import TrainerControl

    from finetune_trainer.loop.callbacks import CheckpointCallback

    now = 0.0
    callback = CheckpointCallback(None, 60, clock=lambda: now)  # type: ignore[arg-type]

    def is_due() -> bool:
        control = TrainerControl()
        callback.on_step_end(None, None, control)
        return bool(control.should_save)

    callback.on_train_begin(None, None, None)
    now = 59
    assert not is_due()
    now = 60
    assert is_due()
    callback.on_save(None, None, None)
    now = 119
    assert not is_due()
