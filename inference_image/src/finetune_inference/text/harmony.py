"""Reader of GPT-OSS's answers, whose parts are messages on channels.

An answer is `<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...`; a call names its function
in the header, before or after the channel: `to=functions.NAME`. The history is rendered in another form than the model writes,
so that the form cannot be learned from the template.
"""

import json
from collections.abc import Callable

import regex

from finetune_inference.text.answer_parser import Content, Part, Reasoning, ToolCall, Tools

_TAG = regex.compile(r"<\|(start|channel|constrain|message|end|call|return)\|>")
_RECIPIENT = regex.compile(r"to=(?:functions\.)?([^\s<]+)")


class HarmonyParser:
    """Reader of answers on channels."""

    def __init__(self, tools: Tools, new_id: Callable[[], str]) -> None:
        self.calls = 0
        self._tools = tools
        self._new_id = new_id
        self._text = ""
        self._header = ""
        self._body: str | None = None
        """Arguments so far; None outside a call's body."""
        self._kind: Callable[[str], Part] | None = None
        """Part that the current body belongs to; None in a header and in a call."""

    @property
    def in_reasoning(self) -> bool:
        """True while the text is reasoning."""
        return self._kind is Reasoning

    def push(self, text: str) -> list[Part]:
        """Add text and return the parts that became certain."""
        self._text += text
        parts: list[Part] = []
        while (found := _TAG.search(self._text, partial=True)) is not None:
            parts += self._add(self._text[: found.start()])
            if found.partial:
                self._text = self._text[found.start() :]
                return parts
            self._text = self._text[found.end() :]
            parts += self._tag(found[1])
        parts += self._add(self._text)
        self._text = ""
        return parts

    def finish(self) -> list[Part]:
        """Return the remaining parts, when no text follows."""
        parts = self._add(self._text)
        self._text = ""
        parts += self._end_body()
        if self._header.strip() and not self._in_body:
            # An answer without any channel.
            parts.append(Content(self._header))
        self._header = ""
        return parts

    @property
    def _in_body(self) -> bool:
        return self._kind is not None or self._body is not None

    def _add(self, text: str) -> list[Part]:
        if self._kind:
            return [self._kind(text)] if text else []
        if self._body is not None:
            self._body += text
        else:
            self._header += text
        return []

    def _tag(self, tag: str) -> list[Part]:
        if tag == "message":
            self._begin_body()
            return []
        if tag in ("channel", "constrain") and not self._in_body:
            self._header += f" {tag}:"
            return []
        parts = self._end_body()
        self._header = " channel:" if tag == "channel" else ""
        return parts

    def _begin_body(self) -> None:
        if _RECIPIENT.search(self._header) and self._tools.read:
            self._body = ""
        else:
            self._kind = Reasoning if "channel:analysis" in self._header else Content

    def _end_body(self) -> list[Part]:
        body, self._body, self._kind = self._body, None, None
        if body is None:
            return []
        name = _RECIPIENT.search(self._header)
        self._header = ""
        try:
            arguments = json.loads(body or "{}", strict=False)
        except ValueError:
            arguments = None
        if name is None or not isinstance(arguments, dict):
            return [Content(body)] if body else []
        if self._tools.single and self.calls:
            return []
        self.calls += 1
        return [ToolCall(self.calls - 1, self._new_id(), name[1], json.dumps(arguments, ensure_ascii=False))]
