"""What a rendering lacks of its conversation is found over the templates of many model families, and nothing else is."""

from typing import Any

import pytest

from finetune_model.rendered_texts import dropped_texts, texts_of
from finetune_trainer.data.unused import MAX_KEYS, KeyCounter, in_words
from lab.fixtures.chat_templates import FAMILIES, Family
from lab.right_rows.case import Case, Right, run
from lab.right_rows.cases.words import ANSWER, ASK, TRACK, assistant, call, result, system, user
from lab.right_rows.templates import TEMPLATES

CALLING = [
    ASK,
    assistant(None, tool_calls=[call({"id": "42", "n": 3, "q": 'a "b"\nc'}, id="abcdefghi")]),
    result("left yesterday", tool_call_id="abcdefghi"),
    assistant("It left then."),
]


def found(family: Family, messages: list[Any], monkeypatch: pytest.MonkeyPatch, **columns: Any) -> Right:
    monkeypatch.setitem(TEMPLATES, family.name, family.template)
    return run(Case("", "", [{"messages": messages, **columns}], Right(), family.name, max_length=4000)).found


@pytest.mark.model
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_template_that_writes_everything_lacks_nothing(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    start = [system("Be brief.")] if family.system else []
    plain = found(family, [*start, user("Hi there!  "), assistant(" Good\n day. "), ASK, ANSWER], monkeypatch)
    assert (plain.refused, plain.unrendered) == (None, {})
    if family.tools:
        called = found(family, CALLING, monkeypatch, tools=[TRACK])
        assert (called.refused, called.unrendered) == (None, {})


@pytest.mark.model
@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.tools], ids=lambda family: family.name)
def test_a_call_is_never_learnt_as_silence(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = found(family, CALLING[:2], monkeypatch, tools=[TRACK]).refused or ""
    assert "would be learnt without its calls" in refused or "chat template" in refused


@pytest.mark.model
@pytest.mark.parametrize("name", ["user", "assistant", "you"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.tools][:6], ids=lambda family: family.name)
def test_a_call_that_is_named_like_another_word_of_the_chat_is_not_learnt_as_silence(
    family: Family, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [user("Who are you?"), assistant(None, tool_calls=[call({}, name)])]
    refused = found(family, messages, monkeypatch).refused or ""
    assert "would be learnt without its calls" in refused or "chat template" in refused


def test_each_place_of_a_rendering_counts_for_one_text() -> None:
    messages = [user("Please track it"), assistant("", tool_calls=[call({"id": 4})])]
    assert [path for path, _ in dropped_texts(messages, None, "Please track it")] == [
        "messages[1].tool_calls[0].function.name",
        "messages[1].tool_calls[0].function.arguments.id",
        "messages[1].tool_calls[0].function.arguments.id",
    ]
    assert dropped_texts(messages, None, "Please track it <track id=4>") == []


def test_texts_are_found_as_json_and_python_quote_them() -> None:
    messages = [user("a"), assistant("", tool_calls=[call({"q": 'x "y"\n\u00fc'}, "go")])]
    for written in (
        'go {"q": "x \\"y\\"\\n\u00fc"}',
        'go {"q": "x \\"y\\"\\n\\u00fc"}',
        "go {'q': 'x \"y\"\\n\u00fc'}",
    ):
        assert dropped_texts(messages, None, f"a {written}") == []


def test_a_thought_in_a_content_is_a_text_of_its_own() -> None:
    messages = [user("a"), assistant("<think>\nHm.\n</think>\n\nYes.")]
    assert [text for _, text in texts_of(messages)] == ["a", "\nHm.\n", "\n\nYes."]
    assert [path for path, _ in dropped_texts(messages, None, "a Yes.")] == ["messages[1].reasoning_content"]


def test_keys_that_are_values_are_counted_together() -> None:
    counter = KeyCounter()
    for number in range(MAX_KEYS + 5):
        counter.add(f"line {number}", f"messages[{number}].id-{number}")
    counts = counter.counts()
    assert len(counts) == MAX_KEYS + 1
    assert (counts[-1].path, counts[-1].rows) == ("\u2026", 5)
    assert in_words(counts).endswith("and 93 more keys")


def test_of_two_equal_texts_the_reasoning_is_the_one_that_is_left_out() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "Yes."},
    ]
    assert dropped_texts(messages, None, "user: Hi\nassistant: Yes.\n") == [("messages[1].reasoning_content", "Yes.")]


def test_a_trimmed_text_is_found_although_a_shorter_one_stands_in_it() -> None:
    messages = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a\r\nb c"}]
    assert dropped_texts(messages, None, "a\nb c. b") == []
