"""Parts of one row by the columns of its form: texts, conversations, tools, and the keys that no part uses."""

from collections.abc import Callable
from typing import Any

from finetune_api.v1alpha1 import Columns
from finetune_model.messages import Message, MessageError, Tool, is_empty, normalize, normalize_tools, report_unused
from finetune_trainer.data.forms import Form
from finetune_trainer.data.messages import as_list, check_learnt, check_text, from_sharegpt, is_beginning, is_sharegpt
from finetune_trainer.data.problems import listed
from finetune_trainer.data.rows import Row


class RowParts:
    """Parts of a row; each method raises MessageError with the column's name for a part that is wrong."""

    def __init__(
        self, row: Row, form: Form, columns: Columns | None, loss_on: str, unused: Callable[[str], None] | None
    ) -> None:
        """Check that the row has the form's required columns, and report the others to `unused`."""
        self.where = row.where
        self.loss_on = loss_on
        self.names = {part: form.column(part, columns, row.value) for part in form.parts}
        """Column of each part."""
        self.unused = unused
        self._row = row.value
        for part in form.required:
            if self.names[part] not in row.value:
                raise MessageError("column", f"{self.names[part]} is missing, found {listed(row.value)}")
        if unused:
            report_unused(row.value, set(self.names.values()), "", lambda path: unused(path.removeprefix(".")), "a row")

    def value(self, part: str) -> Any:
        """Return a part as the row has it; None if it is absent."""
        return self._row.get(self.names[part])

    def has(self, part: str) -> bool:
        """Return whether a part holds anything."""
        return not is_empty(self.value(part))

    def text(self, part: str, *, may_be_blank: bool = False) -> str:
        """Return a part that must be text."""
        return check_text(self.value(part), self.names[part], may_be_blank=may_be_blank)

    def optional_text(self, part: str) -> str:
        """Return a part that may be absent; then it is the empty text."""
        value = self.value(part)
        return "" if value is None else check_text(value, self.names[part], may_be_blank=True)

    def leave(self, part: str) -> None:
        """Report a part that turned out not to be meant."""
        if self.unused and self.has(part):
            self.unused(self.names[part])

    def tools(self) -> list[Tool] | None:
        """Return the functions that the row offers to the model."""
        return normalize_tools(self.value("tools"), functions=self.value("functions"), unused=self.unused)

    def chat(self, part: str) -> list[Message]:
        """Return a part that must be a conversation, with the row's system text as its first message."""
        return self.with_system(self.conversation(self.value(part), self.names[part]))

    def conversation(self, value: Any, column: str) -> list[Message]:
        """Return messages in the common form."""
        return self._normalized([], self._as_openai(value, column), column)

    def answer(self, value: Any, column: str, prompt: list[Message]) -> list[Message]:
        """Return the messages after the prompt, whether or not `value` repeats it."""
        value = self._as_openai(value, column)
        try:
            alone = self._normalized([], value, column)
        except MessageError:
            alone = []
        # A system text may come from its own column, and stand in the prompt only.
        system = 1 if prompt and prompt[0]["role"] == "system" else 0
        for repeated in (prompt, prompt[system:]):
            if repeated and is_beginning(repeated, alone):
                return alone[len(repeated) :]
        # Read once more behind the prompt, because a result refers to a call that may stand there.
        return self._normalized(prompt, value, column)

    def _as_openai(self, value: Any, column: str) -> Any:
        value = as_list(value, column)
        return from_sharegpt(value, column) if is_sharegpt(value) else value

    def _normalized(self, before: list[Message], value: Any, column: str) -> list[Message]:
        if not before or not isinstance(value, list) or not value:
            return normalize(value, path=column, training=True, unused=self.unused)[0]
        try:
            return normalize([*before, *value], path=column, training=True, unused=self.unused)[0][len(before) :]
        except MessageError:
            normalize(value, path=column, training=True, unused=self.unused)  # counts positions from the answer's first
            raise

    def with_system(self, messages: list[Message]) -> list[Message]:
        """Return a conversation that begins with the row's system text, if it has one."""
        system = self.optional_text("system") if "system" in self.names else ""
        if not system:
            return messages
        if messages[0]["role"] == "system":
            if messages[0]["content"] != system:
                raise MessageError(
                    self.names["system"], "differs from the conversation's system message; keep one of them"
                )
            return messages
        return [{"role": "system", "content": system}, *messages]

    def check_learnt(self, messages: list[Message], part: str) -> None:
        """Check that something is learnt, and no empty answer."""
        try:
            check_learnt(messages, self.names[part], self.loss_on)
        except MessageError as error:
            if not is_sharegpt(as_list(self.value(part), self.names[part])):
                raise
            raise MessageError(error.path.replace(".content", ".value"), error.problem) from None

    def as_context(self, messages: list[Message]) -> list[Message]:
        """Return messages before the answer of a row; with lossOn completion they carry no loss."""
        return messages if self.loss_on == "all" else [{**message, "weight": 0} for message in messages]


def instruction(parts: RowParts) -> str:
    """Return Alpaca's instruction, followed by its input on a line of its own."""
    texts = [parts.text("instruction", may_be_blank=True), parts.optional_text("input")]
    return "\n".join(text for text in texts if text)


def history(parts: RowParts) -> list[Message]:
    """Return Alpaca's history, a list of questions with their answers, as messages."""
    column = parts.names["history"]
    rounds = as_list(parts.value("history"), column) if parts.has("history") else []
    messages: list[Message] = []
    for index, one in enumerate(rounds):
        if not isinstance(one, list | tuple) or len(one) != 2:
            raise MessageError(f"{column}[{index}]", "is not a pair, expected [question, answer]")
        for role, text, number in zip(("user", "assistant"), one, (0, 1), strict=True):
            messages.append(
                {"role": role, "content": check_text(text, f"{column}[{index}][{number}]", may_be_blank=True)}
            )
    return messages


def user(text: str) -> Message:
    """Return a user's message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """Return an assistant's message."""
    return {"role": "assistant", "content": text}
