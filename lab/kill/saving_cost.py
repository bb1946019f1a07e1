"""What checkpoints cost a training: the time that it stands still, and the CPU time of the thread that writes them.

Measured with a model of six layers, so that steps take as long as their tensors are large: against SmolLM2-135M's, the
adapter's bytes per second of computing are about the same, and checkpoints are five times as frequent as by default.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.fixtures.tiny_model import as_jsonl, chat_rows, make_tiny_tokenizer
from lab.fixtures.training_runs import a_training_config, write_config

STEPS: Final = 40
SAVE_INTERVAL: Final = 10
"""Optimizer steps between two checkpoints; the default is 50."""
ENDED: Final = re.compile(
    r"training ended .*?seconds=(?P<seconds>\S+) .*checkpoints=(?P<saved>\d+) "
    r"blocked_seconds=(?P<blocked>\S+) writing_seconds=(?P<writing>\S+)"
)


@dataclass(frozen=True)
class SavingCost:
    """Shares of the training's time, in percent."""

    blocked: float
    """Training stood still."""
    writing: float
    """CPU time of the writing thread, which a machine without a free core loses too."""
    saved: int
    seconds: float


def measure_saving(folder: Path) -> SavingCost:
    """Train in a process of its own and read its log."""
    config = a_training_config(
        _make_model(folder / "model"),
        folder / "out",
        dataset={"inline": as_jsonl(chat_rows(64))},
        lora={"rank": 16},
        hyperparameters={"batchSize": 16, "maxSteps": STEPS},
        checkpoint={"everySteps": SAVE_INTERVAL},
    )
    command = [sys.executable, "-m", "finetune_trainer", "train", str(write_config(config, folder / "config.json"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    match = ENDED.search(done.stderr)
    assert match, done.stderr[-3000:]
    seconds = float(match["seconds"])
    return SavingCost(
        blocked=100 * float(match["blocked"]) / seconds,
        writing=100 * float(match["writing"]) / seconds,
        saved=int(match["saved"]),
        seconds=seconds,
    )


def _make_model(directory: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
