"""The form in which a model writes reasoning and tool calls, learned from its chat template.

The template renders a conversation with known texts, and the markers are the text around them. So a fine-tuned model is read in
the form in which its rows were rendered, whatever its family. Templates that render no calls, or drop reasoning from the past,
are recognized by the markers that they mention. `openai-harmony` and vLLM's parsers were considered: the former needs the
vocabulary of one family from the network, the latter the whole engine. The parser in transformers needs a description of the
form that hardly any checkpoint has, ends a call at a marker inside a JSON string, and raises for a malformed call.
"""

import json
import logging
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import regex

from finetune_inference.text.call_syntax import CallSyntax, JsonCall, NamedCall, PythonicCall, TaggedCall
from finetune_model.chat import ChatTemplateError, render_chat

log = logging.getLogger(__name__)

NAMES = ("probe_alpha", "probe_beta")
TEXT, NUMBER = "probe value", 7
ARGUMENTS = {"probe_text": TEXT, "probe_number": NUMBER}
ANSWER, REASONING = "probe answer", "probe reasoning"
IDS = (("call_probe0000000001", "call_probe0000000002"), ("probe0001", "probe0002"))
"""Ids of the calls: OpenAI's form, and nine letters or digits, which Mistral's templates demand."""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "A function.",
            "parameters": {
                "type": "object",
                "properties": {"probe_text": {"type": "string"}, "probe_number": {"type": "integer"}},
                "required": [],
            },
        },
    }
    for name in NAMES
]
USER = {"role": "user", "content": "probe question"}


@dataclass(frozen=True)
class ReasoningMarkers:
    """Texts around the reasoning that precedes an answer."""

    opening: str
    closing: str


KNOWN_REASONING = (
    ReasoningMarkers("<think>", "</think>"),
    ReasoningMarkers("[THINK]", "[/THINK]"),
    ReasoningMarkers("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningMarkers("Here is my thought process:", "Here is my response:"),
)
"""Markers of Qwen3 and DeepSeek-R1, Mistral, Command and Granite, of which a template may mention the second only."""

KNOWN_CALLS: dict[str, CallSyntax] = {
    "hermes": CallSyntax(JsonCall(), before="<tool_call>\n", after="\n</tool_call>", separator="\n"),
    "llama": CallSyntax(JsonCall(arguments=("parameters",)), separator="; "),
    "pythonic": CallSyntax(PythonicCall()),
    "mistral": CallSyntax(JsonCall(listed=True), opening="[TOOL_CALLS]"),
    "granite": CallSyntax(JsonCall(listed=True), opening="<|tool_call|>"),
    "phi": CallSyntax(JsonCall(listed=True), opening="<|tool_call|>", closing="<|/tool_call|>"),
    "deepseek": CallSyntax(
        NamedCall("\n```json\n"),
        opening="<｜tool▁calls▁begin｜>",
        before="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        after="```<｜tool▁call▁end｜>",
        closing="<｜tool▁calls▁end｜>",
    ),
    "qwen3-coder": CallSyntax(
        TaggedCall(">", "<parameter=", ">\n", "\n</parameter>"),
        before="<tool_call>\n<function=",
        after="</function>\n</tool_call>",
    ),
}
"""Forms by name, for the setting `tool_call_syntax` and for templates that render no calls."""
MENTIONED = ("phi", "granite", "mistral", "deepseek", "qwen3-coder", "hermes")
"""Forms that are recognized by a marker in a template that renders no calls; the first match counts."""


@dataclass(frozen=True)
class AnswerFormat:
    """The form of a model's answers."""

    reasoning: ReasoningMarkers | None = None
    calls: CallSyntax | None = None
    harmony: bool = False
    """True for GPT-OSS's channels, which have a parser of their own."""
    short_ids: bool = False
    """True if the template demands ids of nine letters or digits."""

    @property
    def markers(self) -> tuple[str, ...]:
        """All marker texts, of which some may be special tokens."""
        if self.harmony:
            return ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
        reasoning = (self.reasoning.opening, self.reasoning.closing) if self.reasoning else ()
        return (*reasoning, *(self.calls.markers if self.calls else ()), "<|python_tag|>")


def learn(tokenizer: Any, calls: str = "auto", reasoning: str = "auto") -> AnswerFormat:
    """Return the form of the answers of a model with this tokenizer.

    `calls` and `reasoning` are the settings: `auto`, `none`, or a name of `KNOWN_CALLS` (for reasoning: an opening marker).
    """
    template = template_text(tokenizer)
    if calls == "harmony" or (calls == "auto" and "<|channel|>" in template and "<|message|>" in template):
        return AnswerFormat(harmony=True)
    learned, short_ids = _learn_calls(tokenizer) if calls == "auto" else (KNOWN_CALLS.get(calls), False)
    if learned is None and calls == "auto":
        learned = next((KNOWN_CALLS[name] for name in MENTIONED if _mentioned(KNOWN_CALLS[name], template)), None)
    return AnswerFormat(_reasoning(tokenizer, template, reasoning), learned, short_ids=short_ids)


def template_text(tokenizer: Any) -> str:
    """Return the source of the chat template; empty without one."""
    template = tokenizer.chat_template or ""
    # A tokenizer may have several templates by name.
    return template if isinstance(template, str) else "\n".join(template.values())


def _mentioned(syntax: CallSyntax, template: str) -> bool:
    return (syntax.opening or syntax.before).split()[0] in template and syntax.closing in template


def _reasoning(tokenizer: Any, template: str, setting: str) -> ReasoningMarkers | None:
    if setting == "auto":
        return _learn_reasoning(tokenizer) or next((m for m in KNOWN_REASONING if m.closing in template), None)
    return next((m for m in KNOWN_REASONING if m.opening == setting), None)


def _render(tokenizer: Any, messages: list[dict[str, Any]], tools: Any = None, *, prompt: bool = False) -> str | None:
    try:
        return render_chat(tokenizer, messages, tools=tools, add_generation_prompt=prompt)
    except ChatTemplateError as error:
        log.debug("Probe of the chat template: %s", error)
        return None


def _turn(tokenizer: Any, message: dict[str, Any], tools: Any = None) -> str | None:
    """Return the assistant's turn as the template renders it, without the text before the model's own part."""
    whole = _render(tokenizer, [USER, message], tools)
    prompt = _render(tokenizer, [USER], tools, prompt=True)
    if whole is None or prompt is None:
        return None
    return whole[len(_shared(whole, prompt)) :]


def _learn_reasoning(tokenizer: Any) -> ReasoningMarkers | None:
    for key in ("reasoning_content", "reasoning", "thinking"):
        turn = _turn(tokenizer, {"role": "assistant", "content": ANSWER, key: REASONING}) or ""
        # Nothing of the turn is shared with a prompt that opens the block itself, so the opening is searched in the whole.
        whole = _render(tokenizer, [USER, {"role": "assistant", "content": ANSWER, key: REASONING}]) or ""
        start, end = whole.find(REASONING), whole.find(ANSWER)
        if REASONING in turn and 0 <= start < end:
            closing = whole[start + len(REASONING) : end].strip()
            opening = regex.search(r"\S+$", whole[:start].rstrip())
            tag = regex.search(r"[<\[][^<>\[\]]*[>\]]$", opening[0]) if opening else None
            if known := next((m for m in KNOWN_REASONING if m.closing == closing), None):
                return known
            if closing and opening:
                return ReasoningMarkers(tag[0] if tag else opening[0], closing)
    return None


def _learn_calls(tokenizer: Any) -> tuple[CallSyntax | None, bool]:
    for short, ids in enumerate(IDS):
        for arguments in (ARGUMENTS, json.dumps(ARGUMENTS)):
            one, two = (_turn(tokenizer, _calling(ids[:n], arguments), TOOLS) for n in (1, 2))
            if one and NAMES[0] in one and TEXT in one:
                both = two if two and NAMES[1] in two and NAMES[0] in two else None
                end = _turn(tokenizer, {"role": "assistant", "content": ANSWER}, TOOLS) or ANSWER
                syntax = _syntax(one, both, end[end.find(ANSWER) + len(ANSWER) :])
                if syntax:
                    return syntax, bool(short)
    return None, False


def _calling(ids: tuple[str, ...], arguments: Any) -> dict[str, Any]:
    calls = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for call_id, name in zip(ids, NAMES, strict=False)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _syntax(one: str, two: str | None, turn_end: str) -> CallSyntax | None:
    """Return the form of calls from a turn with one call and, if the template allows it, one with two."""
    # Reasoning blocks that the template adds are no part of the form.
    one, two = _without_reasoning(one), _without_reasoning(two) if two else None
    return (
        _json_syntax(one, two, turn_end)
        or _named_syntax(one, two, turn_end)
        or _pythonic_syntax(one, turn_end)
        or _tagged_syntax(one, two, turn_end)
    )


def _without_reasoning(turn: str) -> str:
    for markers in KNOWN_REASONING[:3]:
        before, found, after = turn.partition(markers.closing)
        if found and NAMES[0] not in before:
            return after
    return turn


def _json_at(text: str, needle: int) -> tuple[int, int, Any] | None:
    """Return the outermost JSON object or list around a position: its start, end and value."""
    for found in regex.finditer(r"[\[{]", text[: needle + 1]):
        try:
            value, end = json.JSONDecoder().raw_decode(text, found.start())
        except ValueError:
            continue
        if end > needle:
            return found.start(), end, value
    return None


def _json_syntax(one: str, two: str | None, turn_end: str) -> CallSyntax | None:
    position = one.find(NAMES[0])
    found = _json_at(one, position)
    if found is None:
        return None
    start, end, value = found
    first = value[0] if isinstance(value, list) and value else value
    name, arguments = _path_to(first, NAMES[0]), _path_to(first, ARGUMENTS) or _path_to(first, json.dumps(ARGUMENTS))
    if name is None or arguments is None:
        return None
    listed = isinstance(value, list)
    shape = JsonCall(name, arguments, one[start:position], listed)
    opening, rest = one[:start].lstrip(), one[end:]
    closing = rest.removesuffix(turn_end).rstrip()
    if listed:
        return CallSyntax(shape, opening=opening, closing=closing, several=two is not None)
    second = _json_at(two, two.find(NAMES[1])) if two else None
    if two is None or second is None or isinstance(second[2], list):
        return CallSyntax(shape, opening=opening, closing=closing, several=False)
    return _repeated(shape, one[:start], two[end : second[0]], rest, turn_end)


def _path_to(value: Any, wanted: Any, depth: int = 3) -> tuple[str, ...] | None:
    if not isinstance(value, dict) or not depth:
        return None
    for key, inner in value.items():
        if inner == wanted:
            return (key,)
        if deeper := _path_to(inner, wanted, depth - 1):
            return (key, *deeper)
    return None


def _named_syntax(one: str, two: str | None, turn_end: str) -> CallSyntax | None:
    position = one.find(NAMES[0])
    found = _json_at(one, one.find(TEXT, position))
    if found is None or found[0] < position or found[2] != ARGUMENTS:
        return None
    start, end, _ = found
    shape = NamedCall(one[position + len(NAMES[0]) : start])
    second = two.find(NAMES[1]) if two else -1
    if two is None or second < 0:
        after = one[end:].removesuffix(turn_end).rstrip()
        return CallSyntax(shape, before=one[:position].lstrip(), after=after, several=False)
    return _repeated(shape, one[:position], two[end:second], one[end:], turn_end)


def _repeated(shape: Any, first: str, middle: str, last: str, turn_end: str) -> CallSyntax:
    """Return the form from the texts before the first call, between two calls, and after the last."""
    after = _shared(middle, last)
    before, closing = middle[len(after) :], last[len(after) :].removesuffix(turn_end).rstrip()
    each = before.strip()
    begin = first.rfind(each) if each else -1
    if begin < 0:
        return CallSyntax(shape, first.lstrip(), "", after, closing, before)
    separator = before[: len(before) - len(before.lstrip())]
    return CallSyntax(shape, first[:begin].lstrip(), first[begin:], after, closing, separator)


def _shared(one: str, other: str) -> str:
    """Return the common beginning of two texts, cut before a marker of which they share only a part."""
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    common = "".join(letter for letter, _ in equal)
    part = regex.search(r"[<\[{][^<>\[\]{}\s]*$", common)
    return common[: part.start()] if part else common


def _pythonic_syntax(one: str, turn_end: str) -> CallSyntax | None:
    position = one.find(NAMES[0])
    if not one[position + len(NAMES[0]) :].startswith("(") or not one[:position].rstrip().endswith("["):
        return None
    opening = one[:position].rstrip().removesuffix("[").strip()
    closing = one[one.rfind("]") + 1 :].removesuffix(turn_end).strip() if "]" in one else ""
    return CallSyntax(PythonicCall(), opening=opening, closing=closing)


def _tagged_syntax(one: str, two: str | None, turn_end: str) -> CallSyntax | None:
    """Return the form of one tag per argument, from the texts between the names and values of a call."""
    pieces = regex.split("|".join(map(regex.escape, (NAMES[0], "probe_text", TEXT, "probe_number"))), one)
    if len(pieces) != 5:
        return None
    first, after_name, between, middle, rest = pieces
    number = rest.find(str(NUMBER))
    last = rest[number + len(str(NUMBER)) :]
    after_value = _shared(middle, last).rstrip()
    before_key = middle[len(after_value) :].strip()
    if number < 0 or not after_value or not before_key or not after_name.strip().endswith(before_key):
        return None
    shape = TaggedCall(after_name.strip().removesuffix(before_key).strip(), before_key, between, after_value)
    end = last[len(after_value) :]
    if two and (second := two.find(NAMES[1])) > 0:
        begin = two.find(str(NUMBER), two.find("probe_number")) + len(str(NUMBER)) + len(after_value)
        return _repeated(shape, first, two[begin:second], end, turn_end)
    return CallSyntax(shape, before=first.lstrip(), after=end.removesuffix(turn_end).rstrip(), several=False)
