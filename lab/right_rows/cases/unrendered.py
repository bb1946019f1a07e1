"""Texts that a template leaves out: an answer is refused, everything else is counted."""

from typing import Any

from lab.right_rows.case import Case, Right
from lab.right_rows.cases.words import (
    ANSWER,
    ASK,
    CHAT,
    END,
    LEARNT,
    TRACK,
    TRACKED,
    assistant,
    call,
    result,
    system,
    user,
)

KIND = "what templates leave out"


def chat(name: str, messages: list[Any], right: Right, template: str, **columns: Any) -> Case:
    return Case(name, KIND, [{"messages": messages, **columns}], right, template)


TOOL_TEXTS = {
    "tools[].function.name": 1,
    "tools[].function.description": 1,
    "tools[].function.parameters.properties.id": 1,
}
CALL = assistant(None, tool_calls=[call({"id": "42"}, id="c1")])

CASES = [
    chat(
        "a learnt call",
        [ASK, CALL],
        Right(
            refused="leaves out messages[1].tool_calls[0].function.name, so that messages[1] would be learnt without its calls"
        ),
        "chatml",
    ),
    chat(
        "a learnt call with empty content",
        [user("Where is parcel 42?"), {**CALL, "content": ""}, result("left", tool_call_id="c1"), ANSWER],
        Right(refused="messages[1] would be learnt without its calls"),
        "adds",
    ),
    chat(
        "a call with words",
        [ASK, {**CALL, "content": "One moment."}],
        Right(refused="messages[1] would be learnt without its calls"),
        "chatml",
    ),
    chat(
        "a call named in the question",
        [user("Please track parcel 42 by id"), CALL],
        Right(refused="messages[1] would be learnt without its calls"),
        "chatml",
    ),
    chat(
        "a call that is not learnt",
        [ASK, {**CALL, "weight": 0}, result("left", tool_call_id="c1"), ANSWER],
        Right(
            LEARNT,
            unrendered={"messages[].tool_calls[].function.name": 1, "messages[].tool_calls[].function.arguments.id": 1},
        ),
        "chatml",
    ),
    chat(
        "tools",
        CHAT,
        Right(
            LEARNT,
            unrendered=TOOL_TEXTS,
            remarks=("the chat template of pvc://models/tiny leaves out texts of the training rows: tools[]",),
        ),
        "chatml",
        tools=[TRACK],
    ),
    chat(
        "functions", CHAT, Right(LEARNT, unrendered={"tools[].function.name": 1}), "chatml", functions=[{"name": "go"}]
    ),
    chat(
        "what a tool does",
        CHAT,
        Right(LEARNT, unrendered={"tools[].function.description": 1, "tools[].function.parameters.properties.id": 1}),
        "names-only",
        tools=[TRACK],
    ),
    chat(
        "permitted values",
        CHAT,
        Right(
            LEARNT,
            unrendered={
                "tools[].function.parameters.properties.to": 1,
                "tools[].function.parameters.properties.to.enum[]": 1,
            },
        ),
        "names-only",
        tools=[{"name": "go", "parameters": {"type": "object", "properties": {"to": {"enum": ["left", "right"]}}}}],
    ),
    chat(
        "reasoning",
        [ASK, assistant("It left.", reasoning_content="Look it up.")],
        Right(LEARNT, unrendered={"messages[].reasoning_content": 1}),
        "chatml",
    ),
    chat("a name", [user("Where?", name="Ada"), ANSWER], Right(LEARNT, unrendered={"messages[].name": 1}), "chatml"),
    chat("a name that is written", [user("Where?", name="Ada"), ANSWER], Right(LEARNT), "named"),
    chat(
        "a system message",
        [system("Be brief."), *CHAT],
        Right(LEARNT, unrendered={"messages[].content": 1}),
        "no-system",
    ),
    chat(
        "a second system message",
        [system("Be brief."), ASK, system("Be kind."), ANSWER],
        Right(LEARNT, unrendered={"messages[].content": 1}),
        "first-system",
    ),
    chat(
        "a system message that is refused",
        [system("Be brief."), *CHAT],
        Right(refused="refuses these messages: System role not supported"),
        "refuses-system",
    ),
    chat(
        "a developer's message that is refused",
        [{"role": "developer", "content": "Be brief."}, *CHAT],
        Right(refused="refuses these messages: System role not supported"),
        "refuses-system",
    ),
    chat(
        "a result",
        [ASK, CALL, result("left", tool_call_id="c1"), assistant("It left yesterday.")],
        Right([f"{TRACKED}{END}It left yesterday.{END}"], unrendered={"messages[].content": 1}),
        "no-results",
    ),
    chat("trimmed content", [user("  Where?\n"), assistant(" It left. ")], Right(LEARNT), "refuses-system"),
    chat(
        "text that occurs by chance",
        [system("left"), ASK, ANSWER],
        Right(LEARNT, unrendered={"messages[].content": 1}),
        "no-system",
    ),
    chat(
        "the same text twice",
        [user("Hi"), assistant("Hi"), user("Hi"), assistant("Hi")],
        Right([f"Hi{END}Hi{END}"]),
        "chatml",
    ),
    Case(
        "a column of system texts",
        KIND,
        [{"messages": CHAT, "system": "Be brief."}],
        Right(LEARNT, unrendered={"messages[].content": 1}),
        "no-system",
    ),
    Case(
        "counted by rows",
        KIND,
        [
            {"messages": [user("Where?", name="Ada"), ANSWER]},
            {"messages": CHAT},
            {"messages": [user("Where?", name="Bo"), ANSWER]},
        ],
        Right(LEARNT * 3, unrendered={"messages[].name": 2}),
        "chatml",
    ),
    Case(
        "tools of a pair",
        KIND,
        [{"prompt": [ASK], "chosen": [ANSWER], "rejected": [assistant("No.")], "tools": [{"name": "go"}]}],
        Right([*LEARNT, f"No.{END}"], unrendered={"tools[].function.name": 1}),
        "chatml",
        pairs=True,
    ),
]
