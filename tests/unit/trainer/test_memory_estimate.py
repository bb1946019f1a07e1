"""What a training takes of memory: the estimate, what it decides, and that what it decides changes no result."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_api.outcome import Result
from finetune_api.reasons import Reason
from finetune_trainer.data import TokenRow
from finetune_trainer.data.token_rows import TokenRowsBuilder, as_ids
from finetune_trainer.errors import TrainingError
from finetune_trainer.memory.estimate import GIB, LargestPass, estimate_memory, largest_pass
from finetune_trainer.memory.plan import plan_memory
from finetune_trainer.preflight import describe, run_preflight
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.tasks.finetuning_task import run_finetuning
from lab.fixtures.reporters import RecordingReporter
from lab.fixtures.tiny_model import as_jsonl, chat_rows
from lab.fixtures.training_runs import a_training_config

pytestmark = pytest.mark.model

PAIRS = as_jsonl([{"prompt": f"Question {n}?", "chosen": f"Yes, {n}.", "rejected": f"No, not {n}."} for n in range(8)])


def a_llama() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, hidden_size=1024, intermediate_size=4096))


@pytest.mark.parametrize(
    ("setting", "limit", "expected", "explanation"),
    [
        ("auto", 100 * GIB, False, "100.0 GiB available"),
        ("auto", 5 * GIB, False, "5.0 GiB available"),
        ("auto", 3 * GIB, True, "3.0 GiB available"),
        ("enabled", 100 * GIB, True, "as configured"),
        ("disabled", 4 * GIB, False, "as configured"),
    ],
)
def test_activations_are_recomputed_if_they_would_not_fit_beyond_doubt(
    tmp_path: Path, setting: str, limit: int, expected: bool, explanation: str
) -> None:
    config = a_training_config(Path("model"), tmp_path, hyperparameters={"gradientCheckpointing": setting})
    plan = plan_memory(config, a_llama(), 1_000_000, "float32", LargestPass(tokens=8192, learnt=1024), limit)
    assert plan.gradient_checkpointing is expected
    assert explanation in plan.explanation


def test_a_model_that_cannot_recompute_says_so_if_it_has_to(tmp_path: Path) -> None:
    model, largest = a_llama(), LargestPass(tokens=8192, learnt=1024)
    model.supports_gradient_checkpointing = False
    config = a_training_config(Path("model"), tmp_path)
    plan = plan_memory(config, model, 1000, "float32", largest, limit=GIB)
    assert (plan.gradient_checkpointing, plan.explanation) == (False, "LlamaForCausalLM does not support it")
    config = a_training_config(Path("model"), tmp_path, hyperparameters={"gradientCheckpointing": "enabled"})
    with pytest.raises(TrainingError, match="LlamaForCausalLM does not support; use auto") as caught:
        plan_memory(config, model, 1000, "float32", largest, limit=GIB)
    assert caught.value.reason is Reason.SPEC_INVALID


def a_dataset(rows: list[TokenRow]) -> Any:
    builder = TokenRowsBuilder()
    for row in rows:
        ids = as_ids(row.input_ids)
        builder.add(ids, as_ids(row.labels) == ids)
    return SimpleNamespace(training=SimpleNamespace(rows=builder.build()))


def test_the_largest_pass_has_the_longest_rows_with_what_they_share_once(tmp_path: Path) -> None:
    prefix = list(range(100, 140))
    rows = [TokenRow([*prefix, n, n], [-100] * 41 + [n]) for n in range(4)] + [TokenRow([1, 2], [-100, 2])]
    config = a_training_config(Path("model"), tmp_path)
    packed = largest_pass(config, a_dataset(rows), 3, packed=True, on_gpu=False)
    assert packed.learnt == 3
    # The last token of a row predicts nothing.
    assert packed.tokens == 40 + 3
    assert largest_pass(config, a_dataset(rows), 3, packed=False, on_gpu=False).tokens == 3 * 42


def test_both_answers_of_a_pair_count(tmp_path: Path) -> None:
    rows = [TokenRow(list(range(n, n + 20)), [-100] * 19 + [n + 19]) for n in range(8)]
    config = a_training_config(Path("model"), tmp_path, dpo={})
    assert largest_pass(config, a_dataset(rows), 2, packed=False, on_gpu=False) == LargestPass(4 * 20, 4)


def test_dora_and_dpo_take_more_and_recomputing_takes_less(tmp_path: Path) -> None:
    model, largest = a_llama(), LargestPass(tokens=4096, learnt=512)

    def estimate(*, recomputing: bool = False, **changes: Any) -> Any:
        config = a_training_config(Path("model"), tmp_path, **changes)
        return estimate_memory(config, model, 1000, "bfloat16", largest, gradient_checkpointing=recomputing)

    plain = estimate()
    assert estimate(lora={"useDora": True}).activations > plain.activations
    assert estimate(dpo={}).logits > plain.logits
    assert estimate(recomputing=True).activations < 0.6 * plain.activations
    assert estimate(recomputing=True).least == plain.least


@pytest.mark.parametrize(
    "changes",
    [{}, {"dpo": {}, "dataset": {"inline": PAIRS}}, {"lora": {"useDora": True, "dropout": 0.1}}],
    ids=["packed and fused", "dpo", "dora with dropout"],
)
def test_recomputed_activations_give_the_same_losses(tiny_model: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    found = []
    for setting in ("disabled", "enabled"):
        hyperparameters = {"batchSize": 4, "learningRate": 0.01, "maxSteps": 4, "gradientCheckpointing": setting}
        sections = {"dataset": {"inline": as_jsonl(chat_rows(8))}, **changes}
        reporter = RecordingReporter()
        config = a_training_config(tiny_model, tmp_path / setting, hyperparameters=hyperparameters, **sections)
        outcome = run_finetuning(config, reporter, StopSignal())
        assert outcome.result is Result.SUCCEEDED, outcome
        assert outcome.passes is not None
        assert outcome.passes.gradient_checkpointing is (setting == "enabled")
        found.append([*reporter.losses.values()])
    assert found[1] == pytest.approx(found[0], abs=1e-6)


def test_validate_says_what_auto_would_do(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.preflight import checks

    config = a_training_config(tiny_model, tmp_path)
    plan = run_preflight(config).memory
    assert plan is not None
    assert not plan.gradient_checkpointing
    for limit, recomputed in ((plan.estimate.lowest, False), (plan.estimate.lowest - 1, True)):
        monkeypatch.setattr(checks, "memory_capacity", lambda limit=limit: limit)
        tight = run_preflight(config)
        assert tight.memory is not None
        assert tight.memory.gradient_checkpointing is recomputed
        assert "needs about" in describe(config, tight)
    unknown = run_preflight(config, gpu_memory=0).memory
    assert unknown is not None
    assert not unknown.gradient_checkpointing
