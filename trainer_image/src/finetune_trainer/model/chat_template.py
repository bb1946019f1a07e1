"""The chat template of a run, and the settings that its chats are rendered with: applied, checked, and recorded with the adapter."""

from collections.abc import Sequence
from typing import Any

from finetune_api.artifacts import AdapterChat
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import Chat
from finetune_model.chat import ChatSettings, ChatTemplateError, render_chat, reserved_kwargs
from finetune_trainer.errors import TrainingError

_QUESTION = "What is the capital of France?"
_ANSWER = "Paris is the capital."


def chat_settings(chat: Chat | None) -> ChatSettings:
    """Return the settings that rows are rendered with."""
    return ChatSettings((chat and chat.template_kwargs) or {}, chat.system_prompt if chat else None)


def recorded_chat(chat: Chat | None, end_tokens: Sequence[int]) -> AdapterChat | None:
    """Return what the adapter's manifest says of its chats; None if there is nothing to say."""
    settings = chat_settings(chat)
    if not (settings.template_kwargs or settings.system_prompt or end_tokens):
        return None
    return AdapterChat(
        template_kwargs=dict(settings.template_kwargs),
        system_prompt=settings.system_prompt,
        end_tokens=sorted(end_tokens),
    )


def apply_chat(tokenizer: Any, chat: Chat | None) -> None:
    """Give the tokenizer the run's chat template, and check that it renders chats with the run's settings.

    Raises TrainingError (SpecInvalid) that names the field.
    """
    if chat is None:
        return
    if chat.template is not None:
        tokenizer.chat_template = chat.template
        _check_template(tokenizer)
    if not tokenizer.chat_template:
        if chat.template_kwargs or chat.system_prompt:
            raise _invalid("templateKwargs and systemPrompt need a chat template, and the model has none; set template")
        return
    _check_kwargs(tokenizer, chat)
    if chat.system_prompt is not None:
        _check_system_prompt(tokenizer, chat)


def _check_template(tokenizer: Any) -> None:
    try:
        prompt = render_chat(tokenizer, [{"role": "user", "content": _QUESTION}], add_generation_prompt=True)
        text = render_chat(
            tokenizer, [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
        )
    except ChatTemplateError as error:
        raise _invalid(f"template cannot render a question and its answer: {error}") from None
    if _QUESTION not in prompt or _ANSWER not in text:
        raise _invalid("template leaves out the text of messages; expected one that writes message.content")


def _check_kwargs(tokenizer: Any, chat: Chat) -> None:
    names = chat.template_kwargs or {}
    if reserved := reserved_kwargs(names):
        raise _invalid(f"templateKwargs has {', '.join(reserved)}, which cannot be a variable of a template; remove it")
    text = str(tokenizer.chat_template)
    if unread := sorted(name for name in names if name not in text):
        raise _invalid(
            f"templateKwargs has {', '.join(unread)[:200]}, which the chat template does not read; check the name, or remove it"
        )


def _check_system_prompt(tokenizer: Any, chat: Chat) -> None:
    settings = chat_settings(chat)
    try:
        text = render_chat(
            tokenizer, [{"role": "user", "content": _QUESTION}], settings=settings, add_generation_prompt=True
        )
    except ChatTemplateError as error:
        raise _invalid(f"systemPrompt cannot be rendered: {error}; remove it, or set template") from None
    if "".join(str(chat.system_prompt).split()) not in "".join(text.split()):
        raise _invalid("systemPrompt is left out by the chat template; remove it, or set template")


def _invalid(problem: str) -> TrainingError:
    return TrainingError(Reason.SPEC_INVALID, f"chat.{problem}")
