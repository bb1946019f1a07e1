"""Questions to the endpoint of a run: the base model and the tuned one side by side, and a score on held-out rows."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp

from finetune_api.sources import parse_source
from finetune_api.v1alpha1 import FinetuneJobSpec
from finetune_cli.errors import CommandError

SHOWN_TOKENS: Final = 32
"""Length of the answers that are shown; a base model would talk for long."""
EXTRA_TOKENS: Final = 4
"""Tokens that a scored answer may have more than its reference has characters divided by CHARACTERS_PER_TOKEN."""
CHARACTERS_PER_TOKEN: Final = 2
REQUEST_SECONDS: Final = 120.0


@dataclass(frozen=True)
class HeldOutRow:
    """A message and the answer that it should get."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Answers:
    """Answers of both models to one message."""

    prompt: str
    base: str
    tuned: str


@dataclass(frozen=True)
class Score:
    """Exactly right answers."""

    base: int
    tuned: int
    rows: int


class Endpoint:
    """The OpenAI-compatible API of a run. Use as an async context manager."""

    def __init__(self, url: str, base: str, tuned: str) -> None:
        self.url = url
        self.base = base
        self.tuned = tuned
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, prompt: str) -> Answers:
        """Return both models' answer to one message."""
        base, tuned = await asyncio.gather(
            self._complete(self.base, prompt, SHOWN_TOKENS), self._complete(self.tuned, prompt, SHOWN_TOKENS)
        )
        return Answers(prompt, base, tuned)

    async def score(self, rows: list[HeldOutRow]) -> Score:
        """Ask both models each row, all at once: the server batches them."""
        base, tuned = await asyncio.gather(self._right(self.base, rows), self._right(self.tuned, rows))
        return Score(base, tuned, len(rows))

    async def _right(self, model: str, rows: list[HeldOutRow]) -> int:
        lengths = [len(row.completion) // CHARACTERS_PER_TOKEN + EXTRA_TOKENS for row in rows]
        answers = await asyncio.gather(
            *(self._complete(model, row.prompt, length) for row, length in zip(rows, lengths, strict=True))
        )
        return sum(answer == row.completion.strip() for answer, row in zip(answers, rows, strict=True))

    async def _complete(self, model: str, prompt: str, max_tokens: int) -> str:
        if self._session is None:
            raise RuntimeError("use Endpoint as a context manager")
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        try:
            async with self._session.post(f"{self.url}/chat/completions", json=body) as response:
                answer = await response.json(content_type=None)
                if response.status != 200:
                    raise CommandError(
                        f"The server answered a question to {model} with HTTP {response.status}: {answer}"
                    )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CommandError(f"The server did not answer a question to {model}: {type(error).__name__}") from None
        return str(answer["choices"][0]["message"]["content"] or "").strip()


def held_out_rows(spec: FinetuneJobSpec, config_maps: dict[str, dict[str, str]], count: int) -> list[HeldOutRow]:
    """Return `count` rows of spec.evaluation, evenly taken; none if they are not inline and not in a ConfigMap."""
    evaluation = spec.evaluation
    text = evaluation.inline if evaluation else None
    if evaluation is not None and evaluation.source is not None:
        source = parse_source(evaluation.source)
        if source.scheme == "configmap" and source.path.endswith(".jsonl"):
            text = config_maps.get(source.name, {}).get(source.path)
    rows = [row for line in (text or "").splitlines() if line.strip() and (row := _row(json.loads(line))) is not None]
    step = max(1, len(rows) // count) if count else 1
    return rows[::step][:count]


def _row(row: dict[str, Any]) -> HeldOutRow | None:
    if {"prompt", "completion"} <= row.keys():
        return HeldOutRow(str(row["prompt"]), str(row["completion"]))
    messages = row.get("messages") or []
    if len(messages) == 2 and [m.get("role") for m in messages] == ["user", "assistant"]:
        return HeldOutRow(str(messages[0]["content"]), str(messages[1]["content"]))
    return None
