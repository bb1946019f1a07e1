"""The way there and back: turns are rendered by public families' templates, read again, and are what they were."""

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_inference.engine.interface import Finished, Generated, ScoredToken
from finetune_inference.text.answer_decoder import TextRules
from finetune_inference.text.answer_format import KNOWN_CALLS, AnswerFormat, learn
from finetune_inference.text.answer_parser import AnswerParser, Content, MarkedParser, Part, Reasoning, ToolCall, Tools
from finetune_inference.text.chat_answer import ChatDecoder, Reading, call_ids, opens_reasoning
from finetune_inference.text.harmony import HarmonyParser
from finetune_inference.text.vocabulary import Vocabulary
from finetune_model.chat import render_chat
from lab.fixtures.chat_templates import FAMILIES as LEARNED
from lab.fixtures.chat_templates import Family as LearnedFamily
from support.server.calling_templates import FAMILIES, Family, tokenizer_of

pytestmark = pytest.mark.model

PROPERTIES: dict[str, Any] = {"id": {"type": "string"}, "count": {"type": "integer"}, "deep": {"type": "object"}}
NAMES = ("track", "cancel-order")
FUNCTIONS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "A function.",
            "parameters": {"type": "object", "properties": PROPERTIES if name == "track" else {}},
        },
    }
    for name in NAMES
]
OFFERED = Tools({"track": PROPERTIES}, offered=True)
ENDS = ("<|im_end|>\n", "<|im_end|>", "<|eot_id|>", "<|end|>")
QUESTION = {"role": "user", "content": "Where is it?"}
ARGUMENTS: list[dict[str, Any]] = [
    {"id": '4"2 \\ ü', "count": 7, "deep": {"a": [1, None, True, "]} </tool_call> {"]}},
    {},
]


CONTENTS = ("", "Let me look.\nYes: 1 < 2 [a]")
THOUGHTS = ("", "Hm.\n\nThe id is 42 <b>")
TURNS = [
    pytest.param(name, count, content, reasoning, id=f"{name}-{count}-{bool(content)}-{bool(reasoning)}")
    for name, family in FAMILIES.items()
    for count in range(2 + family.several)
    for content in CONTENTS
    for reasoning in THOUGHTS[: 1 + family.reasoning]
    if (count or content) and not (count and (content or reasoning) and not family.content)
]
"""Every kind of turn that each family's template can render."""


@cache
def known(name: str) -> tuple[Family, Any, AnswerFormat]:
    tokenizer = tokenizer_of(name)
    return FAMILIES[name], tokenizer, Vocabulary(tokenizer).answer_format()


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Family, Any, AnswerFormat]:
    return known(request.param)


def generated(tokenizer: Any, message: dict[str, Any]) -> tuple[str, str]:
    """The prompt as it is asked, and the text that a model learns to add to it."""
    prompt = render_chat(tokenizer, [QUESTION], tools=FUNCTIONS, add_generation_prompt=True)
    whole = render_chat(tokenizer, [QUESTION, message], tools=FUNCTIONS)
    if not whole.startswith(prompt):
        # The prompt opens a block of reasoning that the template does not render in the past.
        prompt = prompt[: prompt.rindex("<think>")]
    answer = whole.removeprefix(prompt)
    assert answer != whole
    return prompt, next((answer.removesuffix(end) for end in ENDS if answer.endswith(end)), answer)


def read(parser: AnswerParser, text: str, step: int = 1000) -> list[Part]:
    parts = [part for at in range(0, len(text), step) for part in parser.push(text[at : at + step])]
    return parts + parser.finish()


def marked(form: AnswerFormat, tools: Tools = OFFERED, *, in_reasoning: bool = False) -> MarkedParser:
    return MarkedParser(form, tools, call_ids(short=form.short_ids), in_reasoning=in_reasoning)


def summed(parts: list[Part]) -> tuple[str, str, list[tuple[str, Any]]]:
    reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
    content = "".join(part.text for part in parts if isinstance(part, Content))
    return reasoning, content, [(p.name, json.loads(p.arguments)) for p in parts if isinstance(p, ToolCall)]


@pytest.mark.parametrize(("name", "count", "content", "reasoning"), TURNS)
def test_a_rendered_turn_is_read_as_what_it_was(name: str, count: int, content: str, reasoning: str) -> None:
    shape, tokenizer, form = known(name)
    arguments: list[Any] = ARGUMENTS[:count]
    calls = [
        {
            "id": f"abcdefgh{index}",
            "type": "function",
            "function": {"name": function, "arguments": json.dumps(given) if shape.text_arguments else given},
        }
        for index, (function, given) in enumerate(zip(NAMES, arguments, strict=False))
    ]
    message = {"role": "assistant", "content": content} | ({"tool_calls": calls} if calls else {})
    prompt, answer = generated(tokenizer, message | ({"reasoning_content": reasoning} if reasoning else {}))
    expected = (reasoning, content, list(zip(NAMES, arguments, strict=False)))
    for step in (1, 3, 1000):
        parts = read(marked(form, in_reasoning=opens_reasoning(form, prompt)), answer, step)
        assert summed(parts) == expected
        ids = [part.id for part in parts if isinstance(part, ToolCall)]
        assert all(len(each) == (9 if shape.short_ids else 29) for each in ids)
        assert len(set(ids)) == count


@pytest.mark.parametrize("family", [each for each in LEARNED if each.tools], ids=lambda each: each.name)
def test_what_the_trainer_renders_the_server_reads(family: LearnedFamily) -> None:
    """The templates of the trainer's own property test."""
    tokenizer = family.tokenizer()
    vocabulary = Vocabulary(tokenizer)
    call = {"id": "call00000", "type": "function", "function": {"name": "track", "arguments": ARGUMENTS[0]}}
    prompt = render_chat(tokenizer, [QUESTION], tools=FUNCTIONS, add_generation_prompt=True)
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    answer = render_chat(tokenizer, [QUESTION, message], tools=FUNCTIONS).removeprefix(prompt)
    reading = Reading(vocabulary.answer_format(), OFFERED)
    decoder = ChatDecoder(vocabulary, TextRules(), tokenizer(prompt, add_special_tokens=False).input_ids, reading)
    ids = tokenizer(answer, add_special_tokens=False).input_ids
    ends = [index for index, token in enumerate(ids) if token in vocabulary.stop_ids]
    deltas = [decoder.feed(Generated(ScoredToken(token))) for token in ids[: ends[0] if ends else None]]
    deltas.append(decoder.feed(Finished("stop", len(deltas) + 1)))
    assert summed([part for delta in deltas for part in delta.parts]) == ("", "", [("track", ARGUMENTS[0])])
    assert deltas[-1].ended == "tool_calls"


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_text_vanishes_however_it_is_broken(family: tuple[Family, Any, AnswerFormat], data: st.DataObject) -> None:
    """Anything but white space and markers comes back: as reasoning, as content or in a call."""
    _, tokenizer, form = family
    call = {"type": "function", "id": "abcdefgh1", "function": {"name": "track", "arguments": {"id": "seven"}}}
    if family[0].text_arguments:
        call["function"]["arguments"] = '{"id": "seven"}'
    _, answer = generated(tokenizer, {"role": "assistant", "content": "", "tool_calls": [call]})
    cut, at = (data.draw(st.integers(0, len(answer))) for _ in range(2))
    broken = answer[:cut][:at] + data.draw(st.text(alphabet='{}[]<>"ab\n', max_size=5)) + answer[:cut][at:]
    whole = read(marked(form), broken)
    parser = marked(form)
    streamed = [part for i in range(0, len(broken), 5) for part in parser.push(broken[i : i + 5])] + parser.finish()
    assert summed(streamed) == summed(whole)
    reasoning, content, calls = summed(whole)
    if not calls:
        squeezed = "".join((reasoning + content).split())
        assert squeezed == "".join(broken.split()) or form.reasoning


@pytest.mark.parametrize(
    "text",
    [
        "No call at all.",
        '<tool_call>\n{"name": "track", "arguments": {"id": "4',
        '<tool_call>\n{"name": "track", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": 7}\n</tool_call>',
        "<tool_call>\nnot JSON\n</tool_call> and more",
        "a <tool_cal",
        "a < b, [1, 2] and {3}\n\n",
    ],
)
def test_a_call_that_is_none_stays_text(text: str) -> None:
    form = AnswerFormat(calls=KNOWN_CALLS["hermes"])
    for step in (1, 1000):
        assert summed(read(marked(form), text, step)) == ("", text, [])


def test_a_malformed_call_does_not_hide_the_next() -> None:
    text = '<tool_call>\noops\n</tool_call>\n<tool_call>\n{"name": "track", "arguments": {}}\n</tool_call>'
    form = AnswerFormat(calls=KNOWN_CALLS["hermes"])
    assert summed(read(marked(form), text, 1)) == ("", "<tool_call>\noops\n</tool_call>", [("track", {})])


def test_calls_without_a_marker_need_tools_and_the_beginning_of_the_answer() -> None:
    form = AnswerFormat(calls=KNOWN_CALLS["llama"])
    call = '{"name": "track", "parameters": {"id": "42"}}'
    assert summed(read(marked(form), call, 1)) == ("", "", [("track", {"id": "42"})])
    assert summed(read(marked(form), "<|python_tag|>" + call, 1)) == ("", "", [("track", {"id": "42"})])
    assert summed(read(marked(form), f"{call}; {call}", 1))[2] == [("track", {"id": "42"})] * 2
    assert summed(read(marked(form, Tools()), call)) == ("", call, [])
    assert summed(read(marked(form), "See " + call)) == ("", "See " + call, [])


def test_reasoning_is_read_only_at_the_start_of_an_answer() -> None:
    form = learn(tokenizer_of("qwen3"))
    assert summed(read(marked(form), "\n<think>\na\n</think>\n\nb <think>c</think>", 1)) == (
        "a",
        "b <think>c</think>",
        [],
    )
    assert summed(read(marked(form), "<think>\n\n</think>\n\nHello", 1)) == ("", "Hello", [])
    assert summed(read(marked(form, in_reasoning=True), "still thinking")) == ("still thinking", "", [])


@pytest.mark.parametrize("step", [1, 4, 1000])
def test_channels_of_gpt_oss_are_reasoning_content_and_calls(step: int) -> None:
    text = (
        "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant<|channel|>commentary<|message|>One moment.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.track <|constrain|>json<|message|>{"id": "42"}<|call|>'
        "<|start|>assistant to=functions.cancel-order<|channel|>commentary json<|message|>{}<|call|>"
    )
    parser = HarmonyParser(OFFERED, call_ids(short=False))
    calls = [("track", {"id": "42"}), ("cancel-order", {})]
    assert summed(read(parser, text, step)) == ("Look it up.", "One moment.", calls)
    final = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>It left.<|return|>"
    assert summed(read(HarmonyParser(OFFERED, call_ids(short=False)), final, step)) == ("Easy.", "It left.", [])
    assert summed(read(HarmonyParser(OFFERED, call_ids(short=False)), "plain", step)) == ("", "plain", [])


def test_templates_that_render_no_calls_are_known_by_the_marker_that_they_mention() -> None:
    tokenizer = tokenizer_of("hermes")
    tokenizer.chat_template = "{# <|tool_call|> #}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert learn(tokenizer).calls == KNOWN_CALLS["granite"]
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert learn(tokenizer) == AnswerFormat()
    assert learn(tokenizer, "hermes", "<think>").markers


def test_settings_replace_what_the_template_says() -> None:
    tokenizer = tokenizer_of("qwen3")
    assert learn(tokenizer, "none", "none") == AnswerFormat()
    assert learn(tokenizer, "mistral").calls == KNOWN_CALLS["mistral"]
    assert learn(tokenizer, "harmony").harmony
