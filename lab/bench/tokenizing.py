"""Speed of tokenizing rows with their loss, against `tokenizer.apply_chat_template` over the same rows, which labels nothing.

python -m lab.bench.tokenizing [ROWS]
"""

import random
import sys
import time
from typing import Any

from finetune_trainer import data
from lab import figures
from lab.fixtures.chat_templates import FAMILIES
from lab.fixtures.tiny_model import LINES

ROWS = 100_000
REPEATS = 3
PART = 2_000
"""Rows between two measurements of either side, so that a busy moment of the machine hits both."""


def rows(count: int) -> list[list[dict[str, Any]]]:
    """Chats of one to three questions, of which one in four has a system prompt."""
    chance = random.Random(0)  # noqa: S311 - the same rows each time
    chats = []
    for _ in range(count):
        chat = [{"role": "system", "content": "You answer support tickets briefly."}] if chance.random() < 0.25 else []
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            chat += [
                {"role": role, "content": " ".join(chance.choices(LINES, k=chance.randint(1, 6)))}
                for role in ("user", "assistant")
            ]
        chats.append(chat)
    return chats


def measure(tokenizer: Any, chats: list[list[dict[str, Any]]]) -> tuple[float, float]:
    """Seconds of plain and of labeled tokenizing."""
    examples = [data.Example(where=f"line {i}", messages=chat) for i, chat in enumerate(chats, start=1)]
    plain = labeled = 0.0
    for start in range(0, len(chats), PART):
        begun = time.perf_counter()
        for chat in chats[start : start + PART]:
            tokenizer.apply_chat_template(chat, tokenize=True)
        halfway = time.perf_counter()
        data.tokenize(examples[start : start + PART], tokenizer, max_length=1 << 16, loss_on="completion")
        plain += halfway - begun
        labeled += time.perf_counter() - halfway
    return plain, labeled


def main() -> int:
    """Entry point; records the ratio of the two speeds."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    began = time.monotonic()
    ratios = {}
    for name in ("qwen2.5", "llama3", "qwen3"):
        tokenizer = next(family for family in FAMILIES if family.name == name).tokenizer()
        chats = rows(count // REPEATS)
        plain, labeled = measure(tokenizer, chats)
        ratios[name] = plain / labeled
        print(
            f"{name}: plain {len(chats) / plain:,.0f} rows/s, labeled {len(chats) / labeled:,.0f} rows/s, ratio {ratios[name]:.2f}"
        )
    figures.record(
        "data-speed",
        [
            figures.Figure(
                "tokenizing rows with their loss",
                min(ratios.values()),
                "times",
                "higher",
                must=0.8,
                peer="apply_chat_template over the rows",
                spread=[min(ratios.values()), max(ratios.values())],
            )
        ],
        time.monotonic() - began,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
