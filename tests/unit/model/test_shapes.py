"""Rows of one shape are rendered once each, with the result of rendering every prompt."""

import random
from typing import Any

import pytest

from finetune_trainer import data
from finetune_trainer.data.rendering import Renderer
from lab.fixtures.chat_templates import FAMILIES, Family
from lab.fixtures.tiny_model import LINES, make_tiny_tokenizer

pytestmark = pytest.mark.model

WORDS = ("x", ".", "12", "user", "assistant", "ab ba", "aa", "a", "</think>", "e\u0301", "👋")
TURNS = (
    ("user", "assistant"),
    ("user", "assistant", "user", "assistant"),
    ("user", "assistant", "user", "assistant", "user", "assistant"),
)


def rows(family: Family, count: int = 80) -> list[data.Example]:
    """Conversations of few shapes with texts of any length."""
    chance = random.Random(family.name)  # noqa: S311 - the same conversations each time
    found = []
    for number in range(count):
        roles = chance.choice(TURNS)
        system = [{"role": "system", "content": chance.choice(LINES)}] if family.system and number % 2 else []
        messages: list[dict[str, Any]] = [
            {"role": role, "content": chance.choice((*WORDS, *LINES)) + chance.choice(("", f" {number}"))}
            for role in roles
        ]
        if number % 5 == 0:
            messages[-1]["reasoning_content"] = chance.choice(LINES)
        found.append(data.Example(where=f"line {number}", messages=[*system, *messages]))
    return found


def tokenized(examples: list[data.Example], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    result = data.tokenize(examples, tokenizer, max_length=1 << 16, loss_on="completion")
    return [(list(row.input_ids), list(row.labels)) for row in result.rows]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_rows_together_give_what_each_gives_alone(family: Family) -> None:
    tokenizer, examples = family.tokenizer(), rows(family)
    assert tokenized(examples, tokenizer) == [row for one in examples for row in tokenized([one], tokenizer)]


def test_most_rows_are_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_model import turns

    tokenizer = make_tiny_tokenizer()
    chats = [
        [{"role": role, "content": f"{LINES[(i + k) % 10]} {i}"} for k, role in enumerate(TURNS[1])] for i in range(100)
    ]
    rendered = []
    render = turns.render_prepared
    monkeypatch.setattr(turns, "render_prepared", lambda *a, **k: rendered.append(1) or render(*a, **k))
    renderer = Renderer(tokenizer, "completion")
    texts = [renderer.render(chat, None) for chat in chats]
    assert len(rendered) < 150
    every = Renderer(tokenizer, "completion", every_prompt=True)
    assert texts == [every.render(chat, None) for chat in chats]


def test_a_template_that_is_not_predictable_has_every_prompt_rendered(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tiny_tokenizer()
    # Long questions get another generation prompt, which no test of a string shows.
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|im_start|>assistant\n{% endif %}",
        "<|im_start|>assistant\n{% if messages[-1].content | length > 40 %}Long. {% endif %}{% endif %}",
    ).replace(
        "{{ message['content'] }}",
        "{% if message.role == 'assistant' and messages[loop.index0 - 1].content | length > 40 %}Long. {% endif %}{{ message.content }}",
    )
    examples = [
        data.Example(
            where=f"line {i}",
            messages=[{"role": "user", "content": text}, {"role": "assistant", "content": f"Yes {i}"}],
        )
        for i, text in enumerate([*["short question"] * 3, *["a question of many, many words that are not needed"] * 5])
    ]
    with caplog.at_level("INFO"):
        together = tokenized(examples, tokenizer)
    assert together == [row for one in examples for row in tokenized([one], tokenizer)]


def test_a_hidden_difference_is_noticed_and_all_rows_are_rendered_anew(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tiny_tokenizer()
    # The whole conversation looks alike, and only the prompt of a short question is another one.
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|im_start|>assistant\n{% endif %}",
        "<|im_start|>assistant{% if messages[-1].content | length > 20 %}{{ '\\n' }}{% endif %}{% endif %}",
    )
    texts = ["a question of many words", "a question of some words", "a question of more words", "why", "how"] * 2
    examples = [
        data.Example(
            where=f"line {i}",
            messages=[{"role": "user", "content": text}, {"role": "assistant", "content": f"Yes {i}"}],
        )
        for i, text in enumerate(texts)
    ]
    with caplog.at_level("INFO"):
        together = tokenized(examples, tokenizer)
    assert together == [row for one in examples for row in tokenized([one], tokenizer)]
    assert "every prompt is rendered" in caplog.text
