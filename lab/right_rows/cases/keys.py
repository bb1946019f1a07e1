"""Columns of a row and keys of a message: used, refused by name, or counted."""

from lab.right_rows.case import Case, Right
from lab.right_rows.cases.words import ANSWER, ASK, CHAT, END, LEARNT, TRACK, assistant, call, system, user

KIND = "columns and keys"


def chat(name: str, messages: list, right: Right, **more) -> Case:  # type: ignore[type-arg, no-untyped-def]
    return Case(name, KIND, [{"messages": messages}], right, **more)


CASES = [
    Case("nothing but messages", KIND, [{"messages": CHAT}], Right(LEARNT)),
    Case("an id beside messages", KIND, [{"messages": CHAT, "id": 7}], Right(LEARNT, unused={"id": 1})),
    Case(
        "columns are counted by rows",
        KIND,
        [{"messages": CHAT, "source": "a"}, {"messages": CHAT, "source": "b"}, {"messages": CHAT}],
        Right(LEARNT * 3, unused={"source": 2}),
    ),
    Case(
        "columns that hold nothing are not counted",
        KIND,
        [{"messages": CHAT, "id": None, "tags": [], "meta": {}, "note": ""}],
        Right(LEARNT),
    ),
    Case(
        "zero and false are values",
        KIND,
        [{"messages": CHAT, "score": 0, "ok": False}],
        Right(LEARNT, unused={"score": 1, "ok": 1}),
    ),
    Case(
        "text beside text", KIND, [{"text": "The sea", "title": "Water"}], Right([f"The sea{END}"], unused={"title": 1})
    ),
    Case(
        "a context beside prompt and completion",
        KIND,
        [{"prompt": "Where?", "completion": "Here.", "context": "A map."}],
        Right([f"Here.{END}"], unused={"context": 1}, remarks=("not used of the training rows: context",)),
    ),
    Case(
        "OpenAI's parallel_tool_calls",
        KIND,
        [{"messages": CHAT, "parallel_tool_calls": False}],
        Right(LEARNT, unused={"parallel_tool_calls": 1}),
    ),
    Case("two forms in one row", KIND, [{"messages": CHAT, "text": "The sea"}], Right(LEARNT, unused={"text": 1})),
    chat(
        "an unknown key of a message", [ASK, {**ANSWER, "mood": "calm"}], Right(LEARNT, unused={"messages[].mood": 1})
    ),
    chat(
        "a key of two messages counts one row",
        [user("Hi", time=1), assistant("It left.", time=2)],
        Right(LEARNT, unused={"messages[].time": 1}),
    ),
    chat(
        "null keys of a message",
        [user("Hi", name=None, tool_calls=None), assistant("It left.", weight=None)],
        Right(LEARNT),
    ),
    chat("an empty list of calls", [ASK, assistant("It left.", tool_calls=[])], Right(LEARNT)),
    chat(
        "a null function_call",
        [ASK, assistant("It left.", function_call=None, refusal=None, audio=None)],
        Right(LEARNT),
    ),
    chat(
        "annotations of an answer",
        [ASK, assistant("It left.", annotations=[{"url": "x"}])],
        Right(LEARNT, unused={"messages[].annotations": 1}),
    ),
    chat(
        "calls of a user",
        [user("Hi", tool_calls=[call({})]), ANSWER],
        Right(LEARNT, unused={"messages[].tool_calls": 1}),
    ),
    chat(
        "a result's id at a user",
        [user("Hi", tool_call_id="1"), ANSWER],
        Right(LEARNT, unused={"messages[].tool_call_id": 1}),
    ),
    chat(
        "reasoning of a user",
        [user("Hi", reasoning_content="Hm."), ANSWER],
        Right(LEARNT, unused={"messages[].reasoning_content": 1}),
    ),
    chat(
        "keys of a part",
        [user([{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]), ANSWER],
        Right(LEARNT, unused={"messages[].content[].cache_control": 1}),
    ),
    chat("null keys of a part", [user([{"type": "text", "text": "Hi", "image_url": None}]), ANSWER], Right(LEARNT)),
    chat(
        "the index of a streamed call",
        [ASK, assistant(None, tool_calls=[call({"id": "42"}, index=1)])],
        Right(unused={"messages[].tool_calls[].index": 1}),
        template="tools",
    ),
    Case(
        "a key beside a tool's function",
        KIND,
        [{"messages": CHAT, "tools": [{**TRACK, "price": 3}]}],
        Right(LEARNT, unused={"tools[].price": 1}),
        template="tools",
    ),
    chat(
        "a developer speaks as system",
        [{"role": "developer", "content": "Be brief."}, *CHAT],
        Right(
            texts=[
                f"<|im_start|>system\nBe brief.{END}\n<|im_start|>user\nWhere is my parcel?{END}\n<|im_start|>assistant\nIt left.{END}\n"
            ]
        ),
    ),
    chat(
        "an unknown role",
        [{"role": "narrator", "content": "Once"}, *CHAT],
        Right(refused="messages[0].role is 'narrator', expected one of system, developer, user"),
    ),
    chat("a role of null", [{"role": None, "content": "Once"}], Right(refused="messages[0] has no role")),
    chat("content of null", [user(None), ANSWER], Right(refused="messages[0].content is null, expected text")),
    chat("no content", [{"role": "user"}, ANSWER], Right(refused="messages[0].content is null, expected text")),
    chat(
        "content that is an object",
        [user({"a": 1}), ANSWER],
        Right(refused="messages[0].content is an object, expected text"),
    ),
    chat(
        "an image",
        [user([{"type": "image_url", "image_url": {"url": "x"}}]), ANSWER],
        Right(refused="content[0] is a part of type 'image_url'"),
    ),
    chat(
        "an image beside text",
        [user([{"type": "text", "text": "Hi"}, {"type": "image"}]), ANSWER],
        Right(refused="content[1] is a part of type 'image'"),
    ),
    chat("a message of text", ["Hi"], Right(refused="messages[0] is text, expected {role, content}")),
    chat("an empty answer", [ASK, assistant("")], Right(refused="messages[1].content is empty, expected text")),
    chat("an empty answer that is not learnt", [ASK, assistant("", weight=0), user("And?"), ANSWER], Right(LEARNT)),
    chat("an empty instruction", [system(""), *CHAT], Right(LEARNT)),
    chat(
        "text parts",
        [user([{"type": "text", "text": "Parcel 42"}, {"type": "text", "text": "Where is it?"}]), ANSWER],
        Right(texts=[f"<|im_start|>user\nParcel 42\nWhere is it?{END}\n<|im_start|>assistant\nIt left.{END}\n"]),
    ),
    chat(
        "text parts of an answer",
        [ASK, assistant([{"type": "text", "text": "It"}, {"type": "text", "text": "left."}])],
        Right([f"It\nleft.{END}"]),
    ),
    chat(
        "parts of the Responses API",
        [user([{"type": "input_text", "text": "Hi"}]), assistant([{"type": "output_text", "text": "It left."}])],
        Right(LEARNT),
    ),
    chat("a refusal is an answer", [ASK, assistant(None, refusal="I must not say.")], Right([f"I must not say.{END}"])),
    chat(
        "a refusal beside an answer",
        [ASK, assistant("It left.", refusal="No.")],
        Right(refused="messages[1].refusal is set beside content"),
    ),
    Case(
        "messages as JSON text",
        KIND,
        [{"messages": '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It left."}]'}],
        Right(LEARNT),
    ),
    Case(
        "strict refuses a column",
        KIND,
        [{"messages": CHAT, "id": 7}],
        Right(refused="dataset.strict is true: id (1 row, line 1)"),
        dataset={"strict": True},
    ),
    Case(
        "strict refuses a key",
        KIND,
        [{"messages": [ASK, {**ANSWER, "mood": "calm"}]}],
        Right(refused="messages[].mood (1 row, line 1)"),
        dataset={"strict": True},
    ),
    Case(
        "strict accepts rows that are used",
        KIND,
        [{"messages": CHAT, "id": None}],
        Right(LEARNT),
        dataset={"strict": True},
    ),
    Case(
        "strict refuses what a template leaves out",
        KIND,
        [{"messages": [system("Be brief."), *CHAT]}],
        Right(refused="leaves out texts of dataset, and dataset.strict is true: messages[].content"),
        template="no-system",
        dataset={"strict": True},
    ),
]
