"""Fifty steps of ours and of stock transformers.Trainer + peft on the same rows end with the same losses and adapter."""

import random
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.batches.batching import StepSampler
from finetune_trainer.data import IGNORED, TokenRow
from lab.fixtures.datasets import tokenized
from lab.fixtures.training_runs import a_training_config

STEPS, BATCH_SIZE, SEED = 50, 8, 11

pytestmark = pytest.mark.model


def rows() -> list[TokenRow]:
    """Conversations under one header, some with two answers, of unlike length."""
    rng = random.Random(5)  # noqa: S311
    header = [rng.randrange(5, 300) for _ in range(12)]
    made = []
    for _ in range(STEPS * BATCH_SIZE):
        ids, labels = list(header), [IGNORED] * len(header)
        for _ in range(rng.choice([1, 1, 2])):
            question = [rng.randrange(5, 300) for _ in range(rng.randrange(1, 30))]
            answer = [rng.randrange(5, 40) for _ in range(rng.randrange(1, 12))]
            ids += question + answer
            labels += [IGNORED] * len(question) + answer
        made.append(TokenRow(ids, labels))
    return made


def stock(model_path: Path, directory: Path) -> tuple[list[float], dict[str, Any]]:
    """transformers.Trainer with its padding collator; two passes per step, so that the loss is one over both."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    class InOurOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, _dataset: Any = None) -> StepSampler:
            return StepSampler([0] * len(dataset), BATCH_SIZE, SEED)

    dataset = [{"input_ids": row.input_ids, "labels": row.labels} for row in rows()]
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    set_seed(SEED)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    arguments = TrainingArguments(
        output_dir=str(directory), num_train_epochs=1, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        learning_rate=5e-3, lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True, seed=SEED,
    )  # fmt: skip
    collator = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(model_path), padding=True)
    trainer = InOurOrder(model=model, args=arguments, data_collator=collator, train_dataset=dataset)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, get_peft_model_state_dict(model)


def ours(model_path: Path, directory: Path) -> tuple[list[float], dict[str, Any]]:
    """The pipeline's own steps with the same rows."""
    from peft import get_peft_model_state_dict

    from finetune_trainer.dataset import PreparedDataset
    from finetune_trainer.training import FinetuningPipeline

    config = a_training_config(
        model_path,
        directory,
        lora={"rank": 8, "alpha": 16},
        hyperparameters={
            "batchSize": BATCH_SIZE, "epochs": 1, "learningRate": 5e-3, "schedule": "constant", "warmupRatio": 0, "seed": SEED
        },
    )  # fmt: skip
    pipeline = FinetuningPipeline(config)
    pipeline.store.open()
    base = pipeline.load_base_model()
    model = pipeline.add_lora(base)
    nothing: Any = None
    dataset = PreparedDataset(training=tokenized(rows()), evaluation=None, max_length=512, report=nothing)
    layout = pipeline.choose_layout(model, base, dataset)
    assert layout.name == "packed"
    trained = pipeline.train(model, base, dataset, layout)
    return [loss for _, loss in trained.losses], get_peft_model_state_dict(model)


def test_losses_and_adapter_are_those_of_stock(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    expected, expected_adapter = stock(tiny_model, tmp_path / "stock")
    found, adapter = ours(tiny_model, tmp_path / "ours")
    assert len(expected) == len(found) == STEPS
    assert expected[-1] < expected[0] * 0.9, "the comparison says nothing if nothing is learnt"
    differences = [abs(a - b) / b for a, b in zip(found, expected, strict=True)]
    print(f"largest relative loss difference over {STEPS} steps: {max(differences):.1e}")
    assert max(differences) <= 1e-5, differences
    assert adapter.keys() == expected_adapter.keys()
    flat, expected_flat = (torch.cat([side[k].flatten() for k in sorted(side)]) for side in (adapter, expected_adapter))
    assert torch.cosine_similarity(flat, expected_flat, dim=0) >= 0.999
