"""One measured training in a process of its own: `measure.py PEER WORKLOAD DTYPE BATCH STEPS` prints one JSON line.

PEER is `stock` (transformers.Trainer, peft and transformers' own padding collator, as their documentation shows them), `ours`
(the pipeline's own steps) or `ours-unshared` (the same without sharing common beginnings). All train on the same rows in the
same steps with the same optimizer, learning rate and seed.
"""

import json
import os
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from finetune_trainer.runtime.environment import DEFAULTS, prepare_environment

if sys.argv[1] == "stock":
    # Threads that wait alike; how memory is given back is part of what is measured.
    os.environ.update(DEFAULTS)
else:
    prepare_environment()

from finetune_api.training import TrainingConfig
from finetune_trainer.batches.batching import StepSampler
from finetune_trainer.data import TokenRow
from lab.bench.training.workloads import WORKLOADS, padding

RANK, ALPHA, LEARNING_RATE, SEED = 16, 32, 2e-4, 1
STOCK_ROWS_PER_PASS = 8
"""What TrainingArguments has by default; larger steps are made by accumulation, as one would."""


def stock(model_path: str, rows: list[TokenRow], dtype: str, batch_size: int, directory: Path) -> dict[str, Any]:
    """What one gets from the libraries' documentation."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    ends: list[tuple[float, float]] = []
    losses: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                ends.append((time.perf_counter(), time.process_time()))
                losses.append(logs["loss"])

    class InOurOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, _dataset: Any = None) -> StepSampler:
            return StepSampler([0] * len(rows), batch_size, SEED)

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype))
    set_seed(SEED)
    model = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trainer = InOurOrder(
        model=model,
        args=TrainingArguments(
            output_dir=str(directory),
            num_train_epochs=1,
            per_device_train_batch_size=min(batch_size, STOCK_ROWS_PER_PASS),
            gradient_accumulation_steps=max(1, batch_size // STOCK_ROWS_PER_PASS),
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=dtype == "bfloat16",
            seed=SEED,
        ),
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(model_path), padding=True),
        train_dataset=[{"input_ids": r.input_ids, "labels": r.labels} for r in rows],
        callbacks=[Clock()],
    )
    trainer.train()
    return {"ends": ends, "losses": losses}


def ours(
    model_path: str, rows: list[TokenRow], dtype: str, batch_size: int, directory: Path, *, shared: bool
) -> dict[str, Any]:
    """The pipeline's steps, with rows that are tokens already."""
    from finetune_trainer.batches.layout import PackedLayout
    from finetune_trainer.dataset import PreparedDataset
    from finetune_trainer.training import FinetuningPipeline
    from lab.fixtures.datasets import tokenized
    from lab.fixtures.reporters import OnStep

    ends: list[tuple[float, float]] = []
    losses: list[float] = []

    def on_step(progress: Any) -> None:
        ends.append((time.perf_counter(), time.process_time()))
        losses.append(progress.loss)

    config = TrainingConfig.model_validate(
        {
            "model": {"path": model_path},
            "dataset": {"inline": "{}"},
            "output": {"directory": str(directory), "adapterName": "bench"},
            "lora": {"rank": RANK, "alpha": ALPHA},
            "hyperparameters": {
                "batchSize": batch_size, "epochs": 1, "learningRate": LEARNING_RATE, "schedule": "constant",
                "warmupRatio": 0, "seed": SEED, "precision": dtype,
            },
            "checkpoint": {"everySteps": 100_000},
        }
    )  # fmt: skip
    pipeline = FinetuningPipeline(config, reporter=OnStep(on_step))
    pipeline.store.open()
    base = pipeline.load_base_model()
    model = pipeline.add_lora(base)
    dataset = PreparedDataset(training=tokenized(rows), evaluation=None, max_length=512, report=None)
    layout: Any = pipeline.choose_layout(model, base, dataset)
    assert layout.name == "packed"
    if not shared:
        layout = PackedLayout(min_shared=0)
    collating = 0.0
    collate = layout.collate

    def timed_collate(batch: Any) -> Any:
        nonlocal collating
        start = time.perf_counter()
        made = collate(batch)
        collating += time.perf_counter() - start
        return made

    layout.collate = timed_collate
    started = time.perf_counter()
    pipeline.train(model, base, dataset, layout)
    return {"ends": ends, "losses": losses, "waiting_share": collating / (time.perf_counter() - started)}


def main() -> None:
    peer, workload, dtype, batch_size, steps, model_path = sys.argv[1:]
    from transformers import AutoTokenizer

    batch = int(batch_size)
    rows = WORKLOADS[workload](batch * int(steps), AutoTokenizer.from_pretrained(model_path))
    order = list(StepSampler([0] * len(rows), batch, SEED))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as directory:
        if peer == "stock":
            result = stock(model_path, rows, dtype, batch, Path(directory))
        else:
            result = ours(model_path, rows, dtype, batch, Path(directory), shared=peer == "ours")
    ends = result.pop("ends")
    result |= {
        "step_seconds": [b[0] - a[0] for a, b in pairwise(ends)],
        "step_cpu_seconds": [b[1] - a[1] for a, b in pairwise(ends)],
        "step_tokens": [
            sum(len(rows[i].input_ids) for i in order[start : start + batch])
            for start in range(batch, len(rows), batch)
        ],
        "padding": padding([rows[i] for i in order], min(batch, STOCK_ROWS_PER_PASS)),
        "imported_mb": before / 1024,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
