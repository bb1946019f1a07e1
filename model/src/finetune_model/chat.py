"""Rendering of conversations with the model's chat template, for training rows and for requests.

A chat template is a program that comes with the model. It refuses a conversation by raising an exception, and raises other
exceptions for messages that its author did not expect.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_model.messages import MessageError, normalize
from finetune_model.unicode import has_unpaired_surrogate as has_unpaired_surrogate

RESERVED_KWARGS: Final = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Names that a chat template's variables cannot have, because they are arguments of the rendering itself."""


class ChatTemplateError(ValueError):
    """A conversation that the model's chat template cannot render; the message gives the reason, without the conversation's text."""


@dataclass(frozen=True)
class ChatSettings:
    """Settings that an adapter's chats are rendered with, beside its template, which belongs to the tokenizer."""

    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template, such as `enable_thinking`."""
    system_prompt: str | None = None
    """Text of the system message that begins a chat without one."""
    end_tokens: frozenset[int] = frozenset()
    """Tokens that ended the learnt answers, so that they end the adapter's answers."""


DEFAULT_SETTINGS: Final = ChatSettings()
"""Settings of a base model, and of an adapter that records none."""


@dataclass(frozen=True)
class Conversation:
    """Messages and tools in the one form that templates get."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    added: int = 0
    """Number of messages that were put before the given ones: 1 for the system prompt, or 0."""


def prepare_chat(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, settings: ChatSettings = DEFAULT_SETTINGS
) -> Conversation:
    """Bring a conversation into the form that templates get, with the system prompt of `settings` if it has none.

    Keys without a meaning are left out, because those who accept messages report them. Raises ChatTemplateError.
    """
    try:
        prepared, functions = normalize(list(messages), list(tools) if tools else None, unused=lambda _path: None)
    except MessageError as error:
        raise ChatTemplateError(str(error)) from None
    if settings.system_prompt is None or any(message["role"] == "system" for message in prepared):
        return Conversation(prepared, functions)
    return Conversation([{"role": "system", "content": settings.system_prompt}, *prepared], functions, added=1)


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    settings: ChatSettings = DEFAULT_SETTINGS,
    template_kwargs: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
) -> str:
    """Render a conversation as the text for the model.

    `add_generation_prompt` appends the beginning of the assistant's answer; `continue_final_message` leaves the last message
    open instead. `template_kwargs` replace those of `settings` one by one. Raises ChatTemplateError.
    """
    chat = prepare_chat(messages, tools, settings)
    return render_prepared(
        tokenizer,
        chat.messages,
        tools=chat.tools,
        template_kwargs={**settings.template_kwargs, **(template_kwargs or {})},
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
    )


def encode_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    settings: ChatSettings = DEFAULT_SETTINGS,
    template_kwargs: Mapping[str, Any] | None = None,
    continue_final_message: bool = False,
) -> list[int]:
    """Return the token ids of a conversation with the generation prompt, or with its last message left open.

    Raises ChatTemplateError.
    """
    text = render_chat(
        tokenizer,
        messages,
        tools=tools,
        settings=settings,
        template_kwargs=template_kwargs,
        add_generation_prompt=not continue_final_message,
        continue_final_message=continue_final_message,
    )
    return encode_rendered(tokenizer, text)


def encode_rendered(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text that a template rendered, which has all special tokens already."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def encode_raw(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of texts that no template renders, each as a prompt of `/v1/completions`.

    The tokenizer's start token is added once, also before a text that begins with it; an end token that the tokenizer adds is
    removed, because a prompt is continued.
    """
    if not texts:
        return []
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    encoded: list[list[int]] = tokenizer(list(texts), verbose=False)["input_ids"]
    for text, ids in zip(texts, encoded, strict=True):
        if start is not None and ids[:2] == [start, start]:
            del ids[0]
        if end is not None and len(ids) > 1 and ids[-1] == end and not text.rstrip().endswith(tokenizer.eos_token):
            ids.pop()
    return encoded


def reserved_kwargs(template_kwargs: Mapping[str, Any]) -> list[str]:
    """Return the names among a template's variables that cannot be set."""
    return sorted(RESERVED_KWARGS.intersection(template_kwargs))


def render_prepared(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, template_kwargs: Mapping[str, Any], **options: Any
) -> str:
    """Render messages of a `Conversation`, or the first ones of it. Raises ChatTemplateError."""
    from jinja2 import TemplateError

    if reserved := reserved_kwargs(template_kwargs):
        raise ChatTemplateError(f"{', '.join(reserved)} cannot be variables of a chat template")
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, **template_kwargs, **options)
    except TemplateError as error:
        raise ChatTemplateError(f"the model's chat template refuses these messages: {error}") from None
    except Exception as error:
        # A template may raise any exception. The message has its type, not its text, which may quote a whole conversation.
        if isinstance(error, MemoryError):
            raise
        raise ChatTemplateError(f"the model's chat template fails on these messages ({type(error).__name__})") from None
    return text
