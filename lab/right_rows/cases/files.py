"""Files: lists in .jsonl, keys that Parquet adds, and Unicode at any depth."""

import io
from typing import Any

from lab.right_rows.case import Case, Right
from lab.right_rows.cases.words import ANSWER, ASK, CHAT, END, LEARNT, TRACKED, assistant, call, result, user

KIND = "files and Unicode"
HALF = "\ud83d"
"""Half of an emoji."""
CUT = "has an unpaired UTF-16 surrogate"


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows as Parquet, in which each object has the keys of all objects of its column."""
    import pyarrow as pa
    from pyarrow import parquet as files

    buffer = io.BytesIO()
    files.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def chat(name: str, messages: list[Any], right: Right, **columns: Any) -> Case:
    return Case(name, KIND, [{"messages": messages, **columns}], right, "tools")


def calling(arguments: Any) -> list[Any]:
    return [ASK, assistant(None, tool_calls=[call(arguments)])]


PAIR = '{"prompt": "Where?", "completion": "It left."}'

CSV_ASK = '"[{""role"": ""user"", ""content"": ""Where?""}]"'


def csv_answer(text: str) -> str:
    """An answer as CSV quotes the JSON text of a list."""
    return '"[{""role"": ""assistant"", ""content"": ""' + text + '""}]"'


CASES = [
    Case(
        "pairs of messages in CSV",
        KIND,
        f"prompt,chosen,rejected\n{CSV_ASK},{csv_answer('It left.')},{csv_answer('No.')}\n",
        Right([LEARNT[0], f"No.{END}"]),
        file="rows.csv",
        pairs=True,
    ),
    Case(
        "prompts of messages in CSV",
        KIND,
        f"prompt,completion\n{CSV_ASK},{csv_answer('It left.')}\n",
        Right(LEARNT),
        file="rows.csv",
    ),
    Case(
        "text that looks like a list",
        KIND,
        [{"prompt": '[{"a": 1}]', "completion": '[{"b": 2}]'}],
        Right(['[{"b": 2}]' + END]),
    ),
    Case("text that begins like a list", KIND, [{"prompt": "[{", "completion": "[{ left"}], Right([f"[{{ left{END}"])),
    Case(
        "a list in .jsonl after a blank line",
        KIND,
        f"\n[\n{PAIR}\n]\n",
        Right(refused="line 2 is not JSON (Expecting value at line 2, column 1): the file is one JSON list"),
        file="rows.jsonl",
    ),
    Case(
        "a list in .jsonl",
        KIND,
        f"[\n{PAIR},\n{PAIR}\n]\n",
        Right(refused="the file is one JSON list; name it .json, or write one object per line"),
        file="rows.jsonl",
    ),
    Case(
        "a list on one line in .jsonl",
        KIND,
        f"[{PAIR}, {PAIR}]\n",
        Right(refused="line 1 is a list of objects; name the file .json"),
        file="rows.jsonl",
    ),
    Case("the same list in .json", KIND, f"[\n{PAIR},\n{PAIR}\n]\n", Right(LEARNT * 2), file="rows.json"),
    Case(
        "commas behind objects",
        KIND,
        f"{PAIR},\n{PAIR},\n",
        Right(refused="line 1 ends with a comma; remove it"),
        file="rows.jsonl",
    ),
    Case(
        "a comma behind one object",
        KIND,
        f"{PAIR}\n{PAIR},\n",
        Right(refused="line 2 ends with a comma; remove it"),
        file="rows.jsonl",
    ),
    Case(
        "an object over several lines",
        KIND,
        '{\n"prompt": "Where?",\n"completion": "It left."\n}\n',
        Right(refused="goes on in the next line; write each row on one line"),
        file="rows.jsonl",
    ),
    Case("JSON Lines in .json", KIND, f"{PAIR}\n{PAIR}\n", Right(LEARNT * 2), file="rows.json"),
    Case(
        "Parquet's null keys",
        KIND,
        lambda: parquet(
            [
                {
                    "messages": [
                        ASK,
                        assistant(None, tool_calls=[call({"id": "42"}, id="c1")]),
                        result("left", tool_call_id="c1"),
                        ANSWER,
                    ]
                }
            ]
        ),
        Right([f"{TRACKED}{END}{LEARNT[0]}"]),
        "tools",
        "rows.parquet",
    ),
    Case(
        "arguments of two functions in Parquet",
        KIND,
        lambda: parquet(
            [
                {"messages": calling({"id": "42"})},
                {"messages": [ASK, assistant(None, tool_calls=[call({"city": "Ulm"}, "go")])]},
            ]
        ),
        Right([f"{TRACKED}{END}", '<tool_call>{"name": "go", "arguments": {"city": "Ulm"}}</tool_call>' + END]),
        "tools",
        "rows.parquet",
    ),
    Case(
        "schemas of two tools in Parquet",
        KIND,
        lambda: parquet(
            [
                {
                    "messages": CHAT,
                    "tools": [{"name": "a", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}],
                },
                {
                    "messages": CHAT,
                    "tools": [{"name": "b", "parameters": {"type": "object", "properties": {"y": {"type": "string"}}}}],
                },
            ]
        ),
        Right(LEARNT * 2),
        "tools",
        "rows.parquet",
    ),
    Case(
        "a weight in one row of Parquet",
        KIND,
        lambda: parquet([{"messages": [ASK, assistant("No.", weight=0), user("Sure?"), ANSWER]}, {"messages": CHAT}]),
        Right([LEARNT[0], LEARNT[0]]),
        file="rows.parquet",
    ),
    Case(
        "null columns in Parquet",
        KIND,
        lambda: parquet([{"messages": CHAT, "system": None}, {"messages": CHAT, "system": "Be brief."}]),
        Right(LEARNT * 2),
        file="rows.parquet",
    ),
    Case(
        "bytes in Parquet",
        KIND,
        lambda: parquet([{"text": b"The sea"}]),
        Right(refused="text is of type bytes, expected text"),
        file="rows.parquet",
    ),
    chat("Unicode of a content", [user("Gr\u00fc\u00dfe \U0001f44b"), ANSWER], Right(LEARNT)),
    chat("a cut emoji in a content", [user(f"Hi {HALF}"), ANSWER], Right(refused=f"messages[0].content {CUT}")),
    chat(
        "a cut emoji in a part",
        [user([{"type": "text", "text": HALF}]), ANSWER],
        Right(refused=f"messages[0].content[0].text {CUT}"),
    ),
    chat("a cut emoji in arguments", calling({"q": [HALF]}), Right(refused=f"arguments.q[0] {CUT}")),
    chat("a cut emoji in arguments as text", calling('{"q": "\\ud83d"}'), Right(refused=f"arguments.q {CUT}")),
    chat(
        "a cut emoji in a key of arguments",
        calling({HALF: 1}),
        Right(refused=f"a key of messages[1].tool_calls[0].function.arguments {CUT}"),
    ),
    chat(
        "a cut emoji in a name",
        [ASK, assistant(None, tool_calls=[call({}, HALF)])],
        Right(refused=f"function.name {CUT}"),
    ),
    chat(
        "a cut emoji in a description",
        CHAT,
        Right(refused=f"tools[0].description {CUT}"),
        tools=[{"name": "go", "description": HALF}],
    ),
    chat(
        "a cut emoji in a schema",
        CHAT,
        Right(refused=f"parameters.properties.to.enum[0] {CUT}"),
        tools=[{"name": "go", "parameters": {"type": "object", "properties": {"to": {"enum": [HALF]}}}}],
    ),
    chat(
        "a cut emoji in reasoning",
        [ASK, assistant("It left.", reasoning_content=HALF)],
        Right(refused=f"messages[1].reasoning_content {CUT}"),
    ),
    chat("a cut emoji in a result", [*calling({}), result(HALF), ANSWER], Right(refused=f"messages[2].content {CUT}")),
    chat("a cut emoji in a column that is not used", CHAT, Right(LEARNT, unused={"note": 1}), note=HALF),
    Case("a cut emoji in a system column", KIND, [{"messages": CHAT, "system": HALF}], Right(refused=f"system {CUT}")),
    Case(
        "a cut emoji in a history",
        KIND,
        [{"instruction": "A", "output": "B", "history": [["C", HALF]]}],
        Right(refused=f"history[0][1] {CUT}"),
    ),
    Case(
        "a cut emoji in ShareGPT",
        KIND,
        [{"conversations": [{"from": "human", "value": HALF}, {"from": "gpt", "value": "It left."}]}],
        Right(refused=CUT),
    ),
    chat(
        "arguments that nest too deeply", calling("[" * 5000), Right(refused="function.arguments is nested too deeply")
    ),
]
