"""Messages and tools in one form: what `normalize` gives back for rows and requests, and what it refuses by its path."""

import copy
from typing import Any

import pytest

from finetune_model.messages import MessageError, normalize, normalize_tools

USER = {"role": "user", "content": "Where?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "track", "arguments": '{"id": 42}'}}
OBJECT = {"id": "c1", "type": "function", "function": {"name": "track", "arguments": {"id": 42}}}
CHATS: list[list[dict[str, Any]]] = [
    [USER, {"role": "assistant", "content": "Here."}],
    [{"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]}, USER],
    [USER, {"role": "assistant", "content": None, "tool_calls": [CALL, {"name": "go"}]}],
    [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "left"}],
    [USER, {"role": "assistant", "function_call": {"name": "go", "arguments": ""}}, {"role": "function", "name": "go", "content": ""}],
    [USER, {"role": "assistant", "content": "Here.", "thinking": "Hm.", "weight": 0, "name": "bot"}],
    [USER, {"role": "assistant", "refusal": "No.", "annotations": [], "audio": None}],
]  # fmt: skip


@pytest.mark.parametrize("messages", CHATS)
def test_what_is_in_the_form_stays_as_it_is_and_arguments_are_not_changed(messages: list[dict[str, Any]]) -> None:
    given = copy.deepcopy(messages)
    once, _ = normalize(messages, training=True)
    assert messages == given
    assert normalize(once, training=True) == (once, None)
    assert all(isinstance(message["content"], str) for message in once)


def test_a_call_and_its_result_in_the_older_form() -> None:
    messages, tools = normalize(CHATS[4], functions=[{"name": "go"}])
    assert messages[1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call00000", "type": "function", "function": {"name": "go", "arguments": {}}}],
        },
        {"role": "tool", "content": "", "name": "go", "tool_call_id": "call00000"},
    ]
    assert tools == [
        {"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}
    ]


def test_results_without_ids_belong_to_the_calls_in_their_order() -> None:
    calls = [{"name": "go"}, {"name": "stop"}, {"name": "go"}]
    results = [
        {"role": "tool", "content": text, **more} for text, more in (("1", {"name": "stop"}), ("2", {}), ("3", {}))
    ]
    messages, _ = normalize([USER, {"role": "assistant", "content": None, "tool_calls": calls}, *results])
    assert [(m["tool_call_id"], m["name"]) for m in messages[2:]] == [
        ("call00001", "stop"),
        ("call00000", "go"),
        ("call00002", "go"),
    ]


@pytest.mark.parametrize(
    ("messages", "path", "problem"),
    [
        ([], "messages", "is an empty list, expected a list of {role, content}"),
        ("Hi", "messages", "is text, expected a list"),
        ([{"role": "user"}], "messages[0].content", "is null, expected text"),
        ([{"role": "assistant", "content": None}], "messages[0].content", "is null, expected text"),
        ([{**USER, "mood": 1}], "messages[0].mood", "has no meaning in a message of role user"),
        ([{**USER, "weight": 0}], "messages[0].weight", "has no meaning in a message of role user"),
        ([{**USER, "tool_calls": [CALL]}], "messages[0].tool_calls", "has no meaning in a message of role user"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}],
         "messages[0].tool_calls[0].function.arguments", "is text that is not JSON"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": " "}}]}],
         "messages[0].tool_calls[0].function.name", "is empty, expected the name of a function"),
        ([{"role": "assistant", "content": "", "tool_calls": [3]}], "messages[0].tool_calls[0]", "is a number"),
        ([{"role": "assistant", "content": "", "function_call": "auto"}], "messages[0].function_call", "is text, expected {name"),
        ([{**USER, "content": [{"type": "text", "text": 3}]}], "messages[0].content[0].text", "is a number, expected text"),
        ([{**USER, "name": 3}], "messages[0].name", "is a number, expected text"),
    ],
)  # fmt: skip
def test_a_message_of_a_request_is_refused_by_its_path(messages: Any, path: str, problem: str) -> None:
    with pytest.raises(MessageError) as caught:
        normalize(messages)
    assert caught.value.path == path
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("arguments", "path", "problem"),
    [
        ('{"x": NaN}', ".x", "is not JSON: NaN"),
        ('{"x": [1, Infinity]}', ".x[1]", "is a number out of range"),
        ('{"x": -1e400}', ".x", "is a number out of range"),
        ({"x": {"y": float("nan")}}, ".x.y", "is not JSON: NaN"),
        ({"x": [{"y": 1e400}]}, ".x[0].y", "is a number out of range"),
    ],
)
def test_a_number_that_json_does_not_have_is_refused_by_its_path(arguments: Any, path: str, problem: str) -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "pay", "arguments": arguments}}]
    with pytest.raises(MessageError) as caught:
        normalize([USER, {"role": "assistant", "content": "", "tool_calls": calls}])
    assert caught.value.path == f"messages[1].tool_calls[0].function.arguments{path}"
    assert caught.value.problem == problem
    with pytest.raises(MessageError) as caught:
        normalize_tools([{"name": "pay", "parameters": arguments}])
    assert (caught.value.path, caught.value.problem) == (f"tools[0].parameters{path}", problem)


def test_the_largest_numbers_stay() -> None:
    function = {"name": "pay", "arguments": '{"x": [1.7976931348623157e308, 5e-324, 100000000000000000000]}'}
    messages, _ = normalize([USER, {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}])
    found = messages[1]["tool_calls"][0]["function"]["arguments"]
    assert found == {"x": [1.7976931348623157e308, 5e-324, 10**20]}


def test_no_error_repeats_a_text() -> None:
    with pytest.raises(MessageError) as caught:
        normalize([{"role": "user", "content": {"secret": "hunter2"}}])
    assert "hunter2" not in str(caught.value)


def test_keys_without_meaning_are_reported_to_whoever_asks() -> None:
    found: list[str] = []
    tools = [{"type": "function", "function": {"name": "go"}, "cost": 1}]
    messages, _ = normalize([{**USER, "mood": "calm", "name": None}], tools, unused=found.append)
    assert messages == [USER]
    assert found == ["messages[0].mood", "tools[0].cost"]


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ([3], "tools[0] is a number"),
        ([{"type": "function", "function": {"name": "a", "parameters": [1]}}], "function.parameters is a list, expected an"),
        ([{"name": "a", "parameters": {"x": b"1"}}], "tools[0].parameters.x is of type bytes, expected JSON"),
        ("[3", "tools is text that is not JSON"),
    ],
)  # fmt: skip
def test_a_tool_is_refused_by_its_path(tools: Any, expected: str) -> None:
    with pytest.raises(MessageError) as caught:
        normalize_tools(tools)
    assert expected in str(caught.value)


def test_deep_values_are_refused_before_a_template_recurses() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    with pytest.raises(MessageError, match="is nested more than 64 levels deep"):
        normalize_tools([{"name": "a", "parameters": {"x": deep}}])
