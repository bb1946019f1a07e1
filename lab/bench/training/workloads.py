"""Rows to train on: what the figures speak of, made the same in every process."""

import csv
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_trainer.data import IGNORED, TokenRow

BANKING77 = Path(os.environ.get("BANKING77_CSV") or "train.csv")
"""The training part of BANKING77 (arXiv 2003.04807, CC BY 4.0), `text,category`; its workloads are left out without it."""
VOCABULARY = 49_000
LABEL_SHARE = 0.42
"""Share of tokens with loss in the made-up rows, that of common instruction data."""


def banking(rows: int, tokenizer: Any) -> list[TokenRow]:
    """Questions and their intents, as plain prompt and completion: short rows of unlike length."""
    with BANKING77.open(encoding="utf-8") as file:
        chosen = _seeded(0).sample(list(csv.DictReader(file)), rows)
    return [_pair(tokenizer, f"Question: {row['text']}\nIntent:", f" {row['category']}") for row in chosen]


def banking_chat(rows: int, tokenizer: Any) -> list[TokenRow]:
    """The same as a conversation under the model's own system prompt: what a user's chat dataset looks like."""
    with BANKING77.open(encoding="utf-8") as file:
        chosen = _seeded(0).sample(list(csv.DictReader(file)), rows)
    made = []
    for row in chosen:
        question = [{"role": "user", "content": row["text"]}]
        prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        made.append(_pair(tokenizer, prompt, row["category"]))
    return made


def mixed(rows: int, _tokenizer: Any) -> list[TokenRow]:
    """Lognormal lengths, median 110, at most 512."""
    rng = _seeded(1)
    return [_random_row(rng, min(512, max(16, round(rng.lognormvariate(4.7, 0.8))))) for _ in range(rows)]


def full(rows: int, _tokenizer: Any) -> list[TokenRow]:
    """All rows as long as they may be: nothing to win by packing."""
    rng = _seeded(2)
    return [_random_row(rng, 512) for _ in range(rows)]


def common_prompt(rows: int, _tokenizer: Any) -> list[TokenRow]:
    """100 tokens that all rows begin with, and 30 of their own with loss."""
    rng = _seeded(3)
    prompt = [rng.randrange(VOCABULARY) for _ in range(100)]
    own = [[rng.randrange(VOCABULARY) for _ in range(30)] for _ in range(rows)]
    return [TokenRow(prompt + tokens, [IGNORED] * 100 + tokens) for tokens in own]


WORKLOADS: dict[str, Callable[[int, Any], list[TokenRow]]] = {
    "banking": banking,
    "banking-chat": banking_chat,
    "mixed": mixed,
    "full": full,
    "common-prompt": common_prompt,
}


def padding(rows: list[TokenRow], batch_size: int) -> float:
    """Tokens with padding over tokens without, for batches in the order of `rows`."""
    lengths = [len(row.input_ids) for row in rows]
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return sum(max(batch) * len(batch) for batch in batches) / sum(lengths)


def _seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - the same rows in every process


def _pair(tokenizer: Any, prompt: str, completion: str) -> TokenRow:
    head = tokenizer(prompt)["input_ids"]
    tail = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
    return TokenRow(head + tail, [IGNORED] * len(head) + tail)


def _random_row(rng: random.Random, length: int) -> TokenRow:
    ids = [rng.randrange(VOCABULARY) for _ in range(length)]
    learnt = round(length * LABEL_SHARE)
    return TokenRow(ids, [IGNORED] * (length - learnt) + ids[length - learnt :])
