"""Rendering of conversations with the model's chat template, for training rows and for requests.

A chat template is a program that comes with the model. It refuses a conversation by raising an exception, and raises other
exceptions for messages that its author did not expect.
"""

from collections.abc import Mapping, Sequence
from typing import Any


class ChatTemplateError(ValueError):
    """A conversation that the model's chat template cannot render; the message gives the reason, without the conversation's text."""


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """Render a conversation as the text for the model.

    `add_generation_prompt` appends the beginning of the assistant's answer. Raises ChatTemplateError.
    """
    text: str = _apply(tokenizer, messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt)
    return text


def encode_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Any] | None = None
) -> list[int]:
    """Return the token ids of a conversation with the generation prompt. Raises ChatTemplateError."""
    ids: list[int] = _apply(
        tokenizer, messages, tools=tools, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    return ids


def has_unpaired_surrogate(text: str) -> bool:
    """Return whether a text holds half of a UTF-16 surrogate pair, which JSON can express but no tokenizer can encode."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _apply(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, **options)
    except TemplateError as error:
        raise ChatTemplateError(f"the model's chat template refuses these messages: {error}") from None
    except Exception as error:
        # A template may raise any exception. The message has its type, not its text, which may quote a whole conversation.
        if isinstance(error, MemoryError):
            raise
        raise ChatTemplateError(f"the model's chat template fails on these messages ({type(error).__name__})") from None
