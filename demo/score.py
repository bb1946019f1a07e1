"""Ask the served endpoint, as any application would: with the openai client."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from openai import OpenAI

from demo.job import DATA, Finished
from demo.narrate import Line, note

SHOWN_TOKENS = 32
"""Length of the answers that are shown; a base model would go on for long."""
SCORED_TOKENS = 12
"""Length of the answers that are scored: the longest right one has 10 tokens, and a longer one is wrong."""
AT_ONCE = 6
"""Questions that are asked at the same time, so that the server never waits for the next."""
SCORED = slice(0, None, 3), slice(1, None, 3)
"""Two thirds of the held-out rows, evenly taken: 24 answers from each model are enough to tell 5 % from 90 %."""
SHOWN_ROWS = (4, 16, 28)
"""Numbers of the held-out rows that are shown."""
WIDTH = 46
"""Columns of an answer when two stand side by side."""


@dataclass(frozen=True)
class Row:
    """A held-out message and the line it should get."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Score:
    """Right answers of one model."""

    model: str
    right: int
    rows: int

    @property
    def percent(self) -> float:
        """Exact matches in percent."""
        return 100 * self.right / self.rows


def client_at(port: int) -> OpenAI:
    """Return a client of the endpoint, which needs no key; the client's constructor does."""
    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=2, timeout=120)


def held_out_rows() -> list[Row]:
    """Rows that were never trained on."""
    text = (DATA / "support-tickets.heldout.jsonl").read_text()
    return [Row(**json.loads(line)) for line in text.splitlines()]


def ask(client: OpenAI, model: str, prompt: str, max_tokens: int) -> str:
    """Return the model's greedy answer."""
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=max_tokens
    )
    return (answer.choices[0].message.content or "").strip()


def show_side_by_side(client: OpenAI, job: Finished) -> None:
    """Three held-out messages, the base model's answer on the left and the tuned model's on the right."""
    rows = held_out_rows()
    note(f"{'base model':{WIDTH}}  tuned model")
    for row in (rows[number] for number in SHOWN_ROWS):
        note("")
        note(f"> {row.prompt}")
        base = _shorten(ask(client, job.base, row.prompt, SHOWN_TOKENS))
        note(f"{base:{WIDTH}}  {ask(client, job.adapter, row.prompt, SHOWN_TOKENS)}")


def score(client: OpenAI, model: str, title: str) -> Score:
    """Exact matches over all held-out rows."""
    held_out = held_out_rows()
    rows, line, right = [row for part in SCORED for row in held_out[part]], Line(), 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = pool.map(lambda row: ask(client, model, row.prompt, SCORED_TOKENS), rows)
        for number, (row, answer) in enumerate(zip(rows, answers, strict=True), start=1):
            right += answer == row.completion
            line.show(title, f"{title}: {right} right of {number}")
    line.close()
    result = Score(model, right, len(rows))
    note(f"{title}: {result.right} of {result.rows} held-out rows exactly right ({result.percent:.0f} %)")
    return result


def _shorten(answer: str) -> str:
    words = " ".join(answer.split())
    return words if len(words) <= WIDTH else words[: WIDTH - 1] + "…"
