"""Conversations rendered by the model's chat template, with the character ranges that carry loss."""

from typing import Any

from finetune_model.chat import ChatTemplateError, render_chat
from finetune_trainer.data.messages import is_learnt
from finetune_trainer.data.rows import Message

Spans = list[tuple[int, int]]
"""Character ranges of a text."""


class Unrenderable(Exception):
    """A conversation that the model's chat template cannot render, or not so that its answers can be told apart."""


def render_learnt(messages: list[Message], tools: list[Any] | None, tokenizer: Any, loss_on: str) -> tuple[str, Spans]:
    """Render a conversation, and return its text with the ranges that carry loss. Raises Unrenderable."""
    text = _render(messages, tools, tokenizer)
    return text, [(0, len(text))] if loss_on == "all" else _learnt_spans(messages, tools, text, tokenizer)


def _learnt_spans(messages: list[Message], tools: list[Any] | None, text: str, tokenizer: Any) -> Spans:
    """Return the ranges of `text` that the assistant writes: from the generation prompt to the end-of-turn token.

    A turn's range is the difference between two renderings: the conversation before the turn with the generation prompt, and
    the conversation including the turn. This requires a template that renders earlier turns alike in both.
    """
    spans = []
    for index, message in enumerate(messages):
        if not is_learnt(message):
            continue
        before = _render(messages[:index], tools, tokenizer, add_generation_prompt=True)
        is_last = index == len(messages) - 1
        after = text if is_last else _render(messages[: index + 1], tools, tokenizer)
        if not (text.startswith(before) and text.startswith(after) and len(after) > len(before)):
            raise Unrenderable(
                f"the model's chat template renders messages[{index}] differently inside a longer conversation, so its "
                "tokens cannot be told apart; make it the last message, or set hyperparameters.lossOn to all"
            )
        spans.append((len(before), _end_of_turn(after, len(before), tokenizer)))
    return spans


def _end_of_turn(rendered: str, start: int, tokenizer: Any) -> int:
    """Return the end of a turn: after the end-of-turn token, without the line break that templates append."""
    trimmed = rendered.rstrip()
    ends_with_special = any(trimmed.endswith(token) for token in _special_tokens(tokenizer))
    return len(trimmed) if ends_with_special and len(trimmed) > start else len(rendered)


def _special_tokens(tokenizer: Any) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _render(
    messages: list[Message], tools: list[Any] | None, tokenizer: Any, *, add_generation_prompt: bool = False
) -> str:
    if not messages:
        return ""
    shown = [{key: value for key, value in m.items() if key != "weight" and value is not None} for m in messages]
    try:
        return render_chat(tokenizer, shown, tools=tools, add_generation_prompt=add_generation_prompt)
    except ChatTemplateError as error:
        raise Unrenderable(str(error)) from None
