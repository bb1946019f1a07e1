"""What is trained is what is asked: over the templates of many model families, each learnt answer follows the token ids that the
server makes of its prompt.

The trainer's own tokenizing and the server's own vocabulary are compared, on random conversations with the texts that break such
equalities: blanks and line breaks at either end, characters that merge, thoughts, calls, and the template's own words.
"""

import random
import time
from typing import Any

import numpy as np
import pytest

from finetune_inference.text.vocabulary import LeftOutError, Vocabulary
from finetune_model.chat import ChatSettings
from finetune_trainer import data
from finetune_trainer.errors import TrainingError
from lab import figures
from lab.fixtures.chat_templates import FAMILIES, Family

pytestmark = pytest.mark.model

CONVERSATIONS = 60
"""Random conversations of each family."""
TEXTS = (
    "Where is my order?",
    "It left\nthis morning.",
    " leading blank",
    "trailing blank  ",
    "\n\nleading lines",
    "trailing lines\n\n",
    "\n",
    "   ",
    "12",
    "345678",
    "x",
    ".",
    ": colon",
    "]",
    "> quoted",
    "Grüße 👋",
    "👋🏽",
    "\u0301accent first",
    "e\u0301",
    "日本語のテキスト",
    "user\nassistant\n",
    "Assistant: no",
    "### Response:\n",
    "<|not a token|>",
    "<th",
    "a < b",
    "tab\tand\r\nreturn",
    "/no_think please",
    "word " * 30,
)
TOOL = {
    "type": "function",
    "function": {
        "name": "track",
        "description": "Find an order",
        "parameters": {"type": "object", "properties": {"id": {"type": "string", "description": "its number"}}},
    },
}


def conversation(family: Family, chance: random.Random) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """A random conversation that the family's template accepts, and its tools."""

    def text(*, answer: bool = False) -> str:
        content = "".join(chance.choices(TEXTS, k=chance.choice((1, 1, 1, 2))))
        if chance.random() < 0.05:
            # Somebody writes one of the model's own tokens.
            content += chance.choice((*family.special, *family.added)) + chance.choice(("", "\n", "after"))
        return content if content.strip() or not answer else "Yes."

    tools = [TOOL] if family.tools and chance.random() < 0.5 else None
    messages: list[dict[str, Any]] = []
    if family.system and chance.random() < 0.5:
        messages.append({"role": "system", "content": text()})
    for _ in range(chance.randint(1, 4)):
        messages.append({"role": "user", "content": text()})
        if tools and chance.random() < 0.5:
            call = {"name": "track", "arguments": {"id": text()}}
            messages += [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"id": "call00000", "type": "function", "function": call}],
                },
                {"role": "tool", "tool_call_id": "call00000", "content": text()},
            ]
        answer: dict[str, Any] = {"role": "assistant", "content": text(answer=True)}
        if chance.random() < 0.2:
            answer["reasoning_content"] = f"Thought {len(messages)}: {chance.choice(TEXTS)}"
        elif chance.random() < 0.1:
            answer["content"] = f"<think>\n{text()}\n</think>\n\n{answer['content']}"
        if chance.random() < 0.15:
            answer["weight"] = 0
        messages.append(answer)
    if not any(is_answer(message) for message in messages):
        messages[-1].pop("weight")
    return messages, tools


def is_answer(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant" and message.get("weight") != 0


def runs(row: data.TokenRow) -> list[int]:
    """Positions at which learnt tokens begin."""
    learnt = np.concatenate([[False], np.asarray(row.labels) != data.IGNORED])
    return np.flatnonzero(learnt[1:] & ~learnt[:-1]).tolist()


def differences(family: Family, variant: dict[str, Any], seed: int) -> list[str]:
    """Answers whose prompt is not what the server would make of it."""
    chance = random.Random(seed)  # noqa: S311 - the same conversations each time
    tokenizer = family.tokenizer()
    system_prompt = "Be brief." if family.system and seed % 3 == 0 else None
    settings = ChatSettings(template_kwargs=variant, system_prompt=system_prompt)
    server = Vocabulary(tokenizer, settings)
    messages, tools = conversation(family, chance)
    try:
        rows = data.tokenize(
            [data.Example(where="line 1", messages=messages, tools=tools)],
            tokenizer,
            max_length=1 << 16,
            loss_on="completion",
            settings=settings,
        ).rows
    except TrainingError as error:
        return [f"{family.name} {variant} {seed}: refused: {error.message}"]
    trained = [(start, list(row.input_ids)) for row in rows for start in runs(row)]
    asked: list[list[int] | None] = []
    for index, message in enumerate(messages):
        if is_answer(message):
            before = [{k: v for k, v in m.items() if k != "weight"} for m in messages[:index]]
            try:
                asked.append(server.encode_chat(before, tools=tools))
            except LeftOutError:
                # The template drops a text of this prompt: the trainer reports it, and the server answers no such request.
                asked.append(None)
    found = [f"{family.name} {seed}: {len(trained)} answers are learnt, {len(asked)} are asked"] * (
        len(trained) != len(asked)
    )
    for number, prompt in enumerate(asked):
        if prompt is not None and not any(start == len(prompt) and ids[:start] == prompt for start, ids in trained):
            found.append(f"{family.name} {variant} {seed}: answer {number} follows another prompt")
    return found


def test_every_learnt_answer_follows_the_token_ids_that_its_prompt_will_have() -> None:
    started = time.monotonic()
    wrong = {
        family.name: [
            problem
            for seed in range(CONVERSATIONS)
            for problem in differences(family, family.variants[seed % len(family.variants)], seed)
        ]
        for family in FAMILIES
    }
    equal = [name for name, problems in wrong.items() if not problems]
    figures.record(
        "data-right",
        [
            figures.Figure("templates with equal ids", len(equal), "templates", "higher", must=25),
            figures.Figure("templates with different ids", len(wrong) - len(equal), "templates", "lower", must=0),
        ],
        time.monotonic() - started,
        merge=True,
    )
    assert not [problem for problems in wrong.values() for problem in problems]
    assert len(equal) >= 25


def test_each_family_has_a_template_of_its_own() -> None:
    assert len({family.template for family in FAMILIES}) == len(FAMILIES) >= 25
