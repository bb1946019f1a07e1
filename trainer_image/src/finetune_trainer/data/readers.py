"""From a row of a known form to an example: conversations, prompts with a completion, and plain text.

Pairs are read by `preference`.
"""

from collections.abc import Callable
from typing import Any, Final

from finetune_api.v1alpha1 import Columns
from finetune_model.messages import Message, MessageError
from finetune_trainer.data import preference
from finetune_trainer.data.forms import (
    ALPACA,
    ALPACA_PREFERENCE,
    IMPLICIT_PREFERENCE,
    OPENAI_MESSAGES,
    OPENAI_PREFERENCE,
    PREFERENCE,
    PROMPT_COMPLETION,
    SHAREGPT,
    SHAREGPT_PREFERENCE,
    TEXT,
    Form,
)
from finetune_trainer.data.messages import is_chat
from finetune_trainer.data.row_parts import RowParts, assistant, history, instruction, user
from finetune_trainer.data.rows import Example, Row


def read_row(
    row: Row, form: Form, columns: Columns | None, loss_on: str, unused: Callable[[str], None] | None = None
) -> Example:
    """Return the example of a row. Keys that no part uses are reported to `unused`.

    Raises MessageError, the rest of a sentence about the row.
    """
    return _READERS[form.name](RowParts(row, form, columns, loss_on, unused))


def _messages(parts: RowParts) -> Example:
    return _conversation(parts, "messages")


def _sharegpt(parts: RowParts) -> Example:
    return _conversation(parts, "conversations")


def _conversation(parts: RowParts, part: str) -> Example:
    messages, tools = parts.chat(part), parts.tools()
    parts.check_learnt(messages, part)
    return Example(where=parts.where, messages=messages, tools=tools)


def _alpaca(parts: RowParts) -> Example:
    prompt, completion = instruction(parts), parts.text("output")
    return _prompted(parts, [*history(parts), user(prompt)], prompt, completion)


def _prompt_completion(parts: RowParts) -> Example:
    _check_label(parts)
    prompt, completion = parts.value("prompt"), parts.value("completion")
    if not (is_chat(prompt) or is_chat(completion)):
        prompt = parts.text("prompt", may_be_blank=True)
        return _prompted(parts, [user(prompt)], prompt, parts.text("completion"))
    context = parts.with_system(
        parts.conversation(prompt, parts.names["prompt"])
        if is_chat(prompt)
        else [user(parts.text("prompt", may_be_blank=True))]
    )
    answer = _answer(parts, completion, context)
    messages = [*parts.as_context(context), *answer]
    parts.check_learnt(messages, "completion")
    return Example(where=parts.where, messages=messages, tools=parts.tools())


def _answer(parts: RowParts, completion: Any, context: list[Message]) -> list[Message]:
    """Return the messages of a completion; a conversation that repeats its prompt loses it."""
    column = parts.names["completion"]
    if not is_chat(completion):
        return [assistant(parts.text("completion"))]
    answer = parts.answer(completion, column, context)
    if not answer or answer[-1]["role"] != "assistant":
        raise MessageError(column, f"ends with {_role(answer)}, expected assistant")
    return answer


def _role(messages: list[Message]) -> str:
    return f"a message of role {messages[-1]['role']}" if messages else "the prompt"


def _prompted(parts: RowParts, context: list[Message], prompt: str, completion: str) -> Example:
    """Return a prompt and its completion, as a chat if more than a question and an answer stands in the row."""
    tools = parts.tools()
    messages = parts.with_system([*context, assistant(completion)])
    if len(messages) == 2 and tools is None:
        return Example(where=parts.where, prompt=prompt, completion=completion)
    return Example(where=parts.where, messages=messages, tools=tools)


def _check_label(parts: RowParts) -> None:
    """Refuse an answer that is labelled as not wanted (KTO), which would be learnt as if it were."""
    label = parts.value("label")
    if isinstance(label, str) and label.lower() in ("true", "false"):
        label = label.lower() == "true"
    if label is False:
        raise MessageError(
            parts.names["label"],
            "is false: an answer that is not wanted (KTO's unpaired preferences), and no method here learns from such an "
            "answer alone. Remove these rows, or write them as prompt, chosen and rejected, and set method.dpo",
        )
    if label is not True:
        parts.leave("label")


def _text(parts: RowParts) -> Example:
    return Example(where=parts.where, text=parts.text("text"))


_READERS: Final[dict[str, Callable[[RowParts], Example]]] = {
    OPENAI_MESSAGES.name: _messages,
    SHAREGPT.name: _sharegpt,
    ALPACA.name: _alpaca,
    PROMPT_COMPLETION.name: _prompt_completion,
    TEXT.name: _text,
    PREFERENCE.name: preference.read_explicit,
    IMPLICIT_PREFERENCE.name: preference.read_implicit,
    OPENAI_PREFERENCE.name: preference.read_openai,
    ALPACA_PREFERENCE.name: preference.read_alpaca,
    SHAREGPT_PREFERENCE.name: preference.read_sharegpt,
}
