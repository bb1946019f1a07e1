"""Tools, calls and results: OpenAI's form reaches the template as it is."""

from typing import Any

from lab.right_rows.case import Case, Right
from lab.right_rows.cases.words import ANSWER, ASK, CHAT, END, LEARNT, TRACK, TRACKED, assistant, call, result, user

KIND = "tools and calls"
CALLED = [f"{TRACKED}{END}"]


def chat(name: str, messages: list[Any], right: Right, template: str = "tools", **columns: Any) -> Case:
    return Case(name, KIND, [{"messages": messages, **columns}], right, template)


def calling(*calls: Any, **more: Any) -> list[Any]:
    return [ASK, assistant(None, tool_calls=list(calls), **more)]


CASES = [
    chat("tools of which each is JSON text", CHAT, Right(LEARNT), tools=['{"name": "go"}']),
    chat(
        "calls as JSON text",
        [ASK, {"role": "assistant", "content": None, "tool_calls": '[{"name": "track", "arguments": {"id": "42"}}]'}],
        Right(CALLED),
    ),
    chat("arguments as text", calling(call('{"id": "42"}', id="c1")), Right(CALLED)),
    chat("arguments as an object", calling(call({"id": "42"}, id="c1")), Right(CALLED)),
    chat("text with white space", calling(call(' {"id":\n"42"} ')), Right(CALLED)),
    chat(
        "no arguments", calling({"function": {"name": "track"}}), Right([TRACKED.replace('{"id": "42"}', "{}") + END])
    ),
    chat("arguments of empty text", calling(call("")), Right([TRACKED.replace('{"id": "42"}', "{}") + END])),
    chat("arguments of null", calling(call(None)), Right([TRACKED.replace('{"id": "42"}', "{}") + END])),
    chat(
        "arguments that nest",
        calling(call('{"a": [{"b": null}], "c": 1.5, "d": true}')),
        Right(
            ['<tool_call>{"name": "track", "arguments": {"a": [{"b": null}], "c": 1.5, "d": true}}</tool_call>' + END]
        ),
    ),
    chat(
        "arguments with quotes",
        calling(call({"q": 'a "b"\n\u00fc'})),
        Right(['<tool_call>{"name": "track", "arguments": {"q": "a \\"b\\"\\n\u00fc"}}</tool_call>' + END]),
    ),
    chat(
        "arguments that are not JSON",
        calling(call("id=42")),
        Right(refused="messages[1].tool_calls[0].function.arguments is text that is not JSON"),
    ),
    chat(
        "arguments of a list",
        calling(call("[1]")),
        Right(refused="function.arguments is the text of a list, expected an object"),
    ),
    chat(
        "arguments of text twice",
        calling(call('"{\\"id\\": 42}"')),
        Right(refused="function.arguments is the text of text, expected an object"),
    ),
    chat(
        "arguments with a key twice",
        calling(call('{"id": 1, "id": 2}')),
        Right(refused="function.arguments has a key more than once"),
    ),
    chat(
        "arguments of a number", calling(call(3)), Right(refused="function.arguments is a number, expected an object")
    ),
    chat(
        "a call without the level of function", calling({"name": "track", "arguments": '{"id": "42"}'}), Right(CALLED)
    ),
    chat(
        "a call without a name",
        calling({"function": {"arguments": "{}"}}),
        Right(refused="tool_calls[0].function.name is null, expected text"),
    ),
    chat(
        "a call of another type",
        calling({"type": "custom", "function": {"name": "track"}}),
        Right(refused="tool_calls[0].type is 'custom', expected function"),
    ),
    chat(
        "calls that are text",
        [ASK, assistant("Hm", tool_calls="track")],
        Right(refused="messages[1].tool_calls is text, expected a list"),
    ),
    chat(
        "a call beside words",
        [ASK, assistant("One moment.", tool_calls=[call({"id": "42"})])],
        Right([f"One moment.{TRACKED}{END}"]),
    ),
    chat("a call beside an empty content", [ASK, assistant("", tool_calls=[call({"id": "42"})])], Right(CALLED)),
    chat("a call without content", [ASK, {"role": "assistant", "tool_calls": [call({"id": "42"})]}], Right(CALLED)),
    chat(
        "parallel calls",
        calling(call('{"id": "42"}', id="a"), call('{"id": "7"}', id="b")),
        Right([TRACKED + TRACKED.replace("42", "7") + END]),
    ),
    chat(
        "the older function_call",
        [ASK, assistant(None, function_call={"name": "track", "arguments": '{"id": "42"}'})],
        Right(CALLED),
    ),
    chat(
        "function_call beside tool_calls",
        [ASK, assistant(None, function_call={"name": "track"}, tool_calls=[call({})])],
        Right(refused="messages[1].function_call is set beside tool_calls"),
    ),
    chat(
        "a result and an answer",
        [*calling(call({"id": "42"}, id="c1")), result("left", tool_call_id="c1"), ANSWER],
        Right([CALLED[0] + LEARNT[0]]),
    ),
    chat(
        "a result of the older role",
        [
            ASK,
            assistant(None, function_call={"name": "track", "arguments": '{"id": "42"}'}),
            {"role": "function", "name": "track", "content": "left"},
            ANSWER,
        ],
        Right(
            texts=[
                f"<|im_start|>user\nWhere is my parcel?{END}\n<|im_start|>assistant\n{TRACKED}{END}\n<|im_start|>tool\nleft{END}\n<|im_start|>assistant\nIt left.{END}\n"
            ]
        ),
    ),
    chat(
        "a result of no call",
        [*calling(call({"id": "42"}, id="c1")), result("left", tool_call_id="c2"), ANSWER],
        Right(refused="messages[2].tool_call_id is the id of no call before it"),
    ),
    chat(
        "a result of calls that are text",
        [ASK, assistant("<call>track 42</call>"), result("left", tool_call_id="c1"), ANSWER],
        Right([f"<call>track 42</call>{END}It left.{END}"]),
    ),
    chat(
        "a result without content",
        [*calling(call({})), result(None), ANSWER],
        Right(refused="messages[2].content is null, expected text"),
    ),
    chat("tools", CHAT, Right(LEARNT), tools=[TRACK]),
    chat(
        "tools are written by the template",
        CHAT,
        Right(
            texts=[
                '<|im_start|>system\n{"type": "function", "function": {"name": "track", "description": "Find a parcel", "parameters": {"type": "object", "properties": {"id": {"type": "string"}}}}}\n'
                f"{END}\n<|im_start|>user\nWhere is my parcel?{END}\n<|im_start|>assistant\nIt left.{END}\n"
            ]
        ),
        tools=[TRACK],
    ),
    chat(
        "functions are tools",
        CHAT,
        Right(
            texts=[
                '<|im_start|>system\n{"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}\n'
                f"{END}\n<|im_start|>user\nWhere is my parcel?{END}\n<|im_start|>assistant\nIt left.{END}\n"
            ]
        ),
        functions=[{"name": "go"}],
    ),
    chat(
        "functions beside tools",
        CHAT,
        Right(refused="functions is set beside tools"),
        functions=[{"name": "go"}],
        tools=[TRACK],
    ),
    chat("tools as JSON text", CHAT, Right(LEARNT), tools='[{"name": "go", "description": "Move"}]'),
    chat("tools that are text", CHAT, Right(refused="tools is text, expected a list of functions"), tools="track"),
    chat(
        "tools that are an object", CHAT, Right(refused="tools is an object, expected a list of functions"), tools=TRACK
    ),
    chat(
        "no tools",
        CHAT,
        Right(texts=[f"<|im_start|>user\nWhere is my parcel?{END}\n<|im_start|>assistant\nIt left.{END}\n"]),
        tools=[],
    ),
    chat(
        "a tool without a name",
        CHAT,
        Right(refused="tools[0].function.name is null, expected text"),
        tools=[{"type": "function", "function": {"description": "x"}}],
    ),
    chat(
        "a tool of another type",
        CHAT,
        Right(refused="tools[0].type is 'web_search', expected function"),
        tools=[{"type": "web_search"}],
    ),
    chat(
        "parameters as text",
        CHAT,
        Right(LEARNT),
        tools=[{"name": "go", "parameters": '{"type": "object", "properties": {"to": {"type": "string"}}}'}],
    ),
    chat(
        "reasoning",
        [ASK, assistant("It left.", reasoning_content="Look it up.")],
        Right([f"<think>Look it up.</think>It left.{END}"]),
    ),
    chat(
        "reasoning by another name",
        [ASK, assistant("It left.", thinking="Look it up.")],
        Right([f"<think>Look it up.</think>It left.{END}"]),
    ),
    chat(
        "reasoning twice",
        [ASK, assistant("It left.", thinking="A", reasoning="A")],
        Right([f"<think>A</think>It left.{END}"]),
    ),
    chat(
        "two different reasonings",
        [ASK, assistant("It left.", thinking="A", reasoning="B")],
        Right(refused="messages[1] has different texts in reasoning and thinking"),
    ),
    chat(
        "arguments as XML",
        calling(call('{"id": "42", "n": 3}')),
        Right([f"<call=track><id>42</id><n>3</n></call>{END}"]),
        template="xml",
    ),
    Case(
        "ShareGPT's calls",
        KIND,
        [
            {
                "conversations": [
                    {"from": "human", "value": "Where?"},
                    {"from": "function_call", "value": '{"name": "track", "arguments": {"id": "42"}}'},
                    {"from": "observation", "value": "left"},
                    {"from": "gpt", "value": "It left."},
                ],
                "tools": '[{"name": "track"}]',
            }
        ],
        Right([CALLED[0] + LEARNT[0]]),
        "tools",
    ),
    Case(
        "tools of a prompt",
        KIND,
        [
            {
                "prompt": [user("Where?")],
                "completion": [assistant(None, tool_calls=[call({"id": "42"})])],
                "tools": [TRACK],
            }
        ],
        Right(CALLED),
        "tools",
    ),
    Case(
        "a column of tools",
        KIND,
        [{"messages": CHAT, "apis": [TRACK]}],
        Right(LEARNT),
        "tools",
        dataset={"columns": {"tools": "apis"}},
    ),
]
