"""Forms of other projects, read as what they are, and forms that nobody knows."""

from typing import Any

from lab.right_rows.case import Case, Right
from lab.right_rows.cases.words import ANSWER, ASK, CHAT, END, LEARNT, said, system, turn, user

KIND = "foreign forms"


def case(name: str, row: dict[str, Any], right: Right, **more: Any) -> Case:
    return Case(name, KIND, [row], right, **more)


def sharegpt(name: str, turns: Any, right: Right, **columns: Any) -> Case:
    return case(name, {"conversations": turns, **columns}, right)


SAID = [said("human", "Where is my parcel?"), said("gpt", "It left.")]
QUESTION = turn("user", "Where is my parcel?")
REPLY = turn("assistant", "It left.")
BRIEF = turn("system", "Be brief.")
FRENCH = {"instruction": "Translate to French.", "input": "Thank you.", "output": "Merci."}

CASES = [
    sharegpt(
        "a number in ShareGPT",
        [said("human", 5), said("gpt", "It left.")],
        Right(refused="conversations[0].value is a number, expected text"),
    ),
    sharegpt(
        "an empty answer in ShareGPT",
        [said("human", "Where?"), said("gpt", "")],
        Right(refused="conversations[1].value is empty, expected text"),
    ),
    case(
        "a mapped column that no row has",
        {"messages": CHAT},
        Right(LEARNT, unused={"dataset.columns.system": 0}, remarks=("dataset.columns.system (no row has rules)",)),
        dataset={"columns": {"system": "rules"}},
    ),
    case(
        "strict refuses a mapped column that no row has",
        {"messages": CHAT},
        Right(refused="dataset.columns.text (no row has body)"),
        dataset={"columns": {"text": "body"}, "strict": True},
    ),
    case(
        "whole conversations of pairs without DPO",
        {"chosen": [ASK, ANSWER], "rejected": [ASK, ASK]},
        Right(LEARNT, unused={"rejected": 1}),
        dataset={"format": "messages", "columns": {"messages": "chosen"}},
    ),
    case(
        "the chosen answers of pairs without DPO",
        {"prompt": "Where?", "chosen": "It left.", "rejected": "No."},
        Right(LEARNT, unused={"rejected": 1}),
        dataset={"format": "prompt-completion", "columns": {"completion": "chosen"}},
    ),
    case(
        "the chosen messages of pairs without DPO",
        {"prompt": "Where is my parcel?", "chosen": [ASK, ANSWER], "rejected": [ASK, ASK]},
        Right(LEARNT, [QUESTION + REPLY], unused={"rejected": 1}),
        dataset={"format": "prompt-completion", "columns": {"completion": "chosen"}},
    ),
    # ShareGPT
    sharegpt("ShareGPT", SAID, Right(LEARNT, [QUESTION + REPLY])),
    sharegpt("ShareGPT's user and assistant", [said("user", "Hi"), said("assistant", "It left.")], Right(LEARNT)),
    sharegpt("ShareGPT's system turn", [said("system", "Be brief."), *SAID], Right(LEARNT, [BRIEF + QUESTION + REPLY])),
    sharegpt("ShareGPT's system column", SAID, Right(LEARNT, [BRIEF + QUESTION + REPLY]), system="Be brief."),
    sharegpt("ShareGPT's empty system column", SAID, Right(LEARNT, [QUESTION + REPLY]), system=""),
    sharegpt(
        "ShareGPT's unknown speaker",
        [said("narrator", "Once"), *SAID],
        Right(refused="conversations[0].from is 'narrator', expected one of human"),
    ),
    sharegpt(
        "ShareGPT without a value",
        [said("human", None), said("gpt", "It left.")],
        Right(refused="conversations[0].value is null, expected text"),
    ),
    sharegpt(
        "ShareGPT without an answer",
        [said("human", "Where?")],
        Right(refused="conversations has no assistant message to learn from"),
    ),
    sharegpt(
        "keys of ShareGPT's turns",
        [said("human", "Where?", mood="calm"), said("gpt", "It left.")],
        Right(LEARNT, unused={"conversations[].mood": 1}),
    ),
    sharegpt("columns beside ShareGPT", SAID, Right(LEARNT, unused={"id": 1}), id="identity_0"),
    sharegpt("conversations of messages", CHAT, Right(LEARNT, [QUESTION + REPLY])),
    sharegpt(
        "ShareGPT's broken call",
        [said("human", "Where?"), said("function_call", "track(42)")],
        Right(refused="conversations[1].value is text that is not JSON"),
    ),
    case("messages of ShareGPT's turns", {"messages": SAID}, Right(LEARNT)),
    case("a conversation column", {"conversation": SAID}, Right(LEARNT)),
    # Alpaca
    case(
        "Alpaca",
        FRENCH,
        Right([f"Merci.{END}"], [turn("user", "Translate to French.\nThank you.") + turn("assistant", "Merci.")]),
    ),
    case(
        "Alpaca without input",
        {**FRENCH, "input": ""},
        Right(texts=[turn("user", "Translate to French.") + turn("assistant", "Merci.")]),
    ),
    case(
        "Alpaca without the column of input",
        {"instruction": "Hi", "output": "Merci."},
        Right(texts=[turn("user", "Hi") + turn("assistant", "Merci.")]),
    ),
    case(
        "Alpaca's system",
        {**FRENCH, "system": "Be brief."},
        Right(texts=[BRIEF + turn("user", "Translate to French.\nThank you.") + turn("assistant", "Merci.")]),
    ),
    case(
        "Alpaca's history",
        {"instruction": "And now?", "input": "", "output": "It left.", "history": [["Where?", "Here."]]},
        Right(
            [f"Here.{END}It left.{END}"],
            [turn("user", "Where?") + turn("assistant", "Here.") + turn("user", "And now?") + REPLY],
        ),
    ),
    case("Alpaca's empty history", {**FRENCH, "history": []}, Right([f"Merci.{END}"])),
    case(
        "Alpaca's broken history",
        {**FRENCH, "history": [["Where?"]]},
        Right(refused="history[0] is not a pair, expected [question, answer]"),
    ),
    case(
        "Alpaca's whole prompt",
        {**FRENCH, "text": "Below is an instruction"},
        Right([f"Merci.{END}"], unused={"text": 1}),
    ),
    case("Alpaca without an output", {**FRENCH, "output": ""}, Right(refused="output is empty, expected text")),
    case(
        "Dolly's context and response",
        {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada.", "category": "qa"},
        Right(
            [f"Ada.{END}"], [turn("user", "Who?\nAda wrote it.") + turn("assistant", "Ada.")], unused={"category": 1}
        ),
    ),
    case(
        "Alpaca mapped by hand",
        FRENCH,
        Right([f"Merci.{END}"], unused={"input": 1}, remarks=("input (1 row",)),
        dataset={"format": "prompt-completion", "columns": {"prompt": "instruction", "completion": "output"}},
    ),
    case(
        "Alpaca for a base model",
        FRENCH,
        Right([f"Merci.{END}"], [f"Translate to French.\nThank you.Merci.{END}"]),
        template="none",
    ),
    # System columns
    case("a system column", {"messages": CHAT, "system": "Be brief."}, Right(LEARNT, [BRIEF + QUESTION + REPLY])),
    case(
        "a system_prompt column",
        {"messages": CHAT, "system_prompt": "Be brief."},
        Right(texts=[BRIEF + QUESTION + REPLY]),
    ),
    case("a system column of null", {"messages": CHAT, "system": None}, Right(LEARNT, [QUESTION + REPLY])),
    case(
        "a system column that repeats the message",
        {"messages": [system("Be brief."), *CHAT], "system": "Be brief."},
        Right(texts=[BRIEF + QUESTION + REPLY]),
    ),
    case(
        "a system column that contradicts the message",
        {"messages": [system("Be kind."), *CHAT], "system": "Be brief."},
        Right(refused="system differs from the conversation's system message"),
    ),
    case(
        "a system column of a number",
        {"messages": CHAT, "system": 3},
        Right(refused="system is a number, expected text"),
    ),
    case(
        "a mapped system column",
        {"messages": CHAT, "rules": "Be brief."},
        Right(texts=[BRIEF + QUESTION + REPLY]),
        dataset={"columns": {"system": "rules"}},
    ),
    # KTO
    case("KTO's wanted answer", {"prompt": "Where?", "completion": "It left.", "label": True}, Right(LEARNT)),
    case(
        "KTO's unwanted answer",
        {"prompt": "Where?", "completion": "It left.", "label": False},
        Right(refused="label is false: an answer that is not wanted (KTO"),
    ),
    case(
        "a label of another meaning",
        {"prompt": "Where?", "completion": "It left.", "label": "shipping"},
        Right(LEARNT, unused={"label": 1}),
    ),
    Case(
        "KTO in CSV",
        KIND,
        "prompt,completion,label\nWhere?,It left.,True\nWhen?,Never.,False\n",
        Right(refused="row 2: label is false"),
        file="rows.csv",
    ),
    # Mapped columns
    case("mapped messages", {"dialog": CHAT}, Right(LEARNT), dataset={"columns": {"messages": "dialog"}}),
    case(
        "mapped prompt and completion",
        {"q": "Where?", "a": "It left."},
        Right(LEARNT),
        dataset={"columns": {"prompt": "q", "completion": "a"}},
    ),
    case("mapped text", {"body": "The sea"}, Right([f"The sea{END}"]), dataset={"columns": {"text": "body"}}),
    case(
        "a mapped column that is missing",
        {"prompt": "Where?", "completion": "It left."},
        Right(refused="has the columns prompt, completion; expected messages or"),
        dataset={"columns": {"prompt": "question"}},
    ),
    # Unknown forms
    case(
        "question and answer",
        {"question": "Where?", "answer": "Here."},
        Right(
            refused="The nearest format is prompt-completion: set dataset.format to prompt-completion and dataset.columns to {prompt: question, completion: answer}."
        ),
    ),
    case(
        "question, context and answer",
        {"question": "Where?", "context": "A map.", "answer": "Here."},
        Right(refused="That leaves out context: write it into one of these columns"),
    ),
    case(
        "a prompt alone",
        {"prompt": "Where?", "topic": "parcels"},
        Right(refused="The nearest format is prompt-completion (prompt: prompt), which lacks completion"),
    ),
    case(
        "dialog",
        {"dialog": CHAT},
        Right(refused="set dataset.format to messages and dataset.columns to {messages: dialog}"),
    ),
    case(
        "content",
        {"content": "The sea", "url": "x"},
        Right(refused="dataset.columns to {text: content}. That leaves out url"),
    ),
    case(
        "nothing known",
        {"a": 1, "b": 2},
        Right(
            refused="has the columns a, b; expected messages or prompt+chosen+rejected or prompt+completion or text, or ShareGPT's conversations"
        ),
    ),
    Case(
        "a later row of another form",
        KIND,
        [{"messages": CHAT}, {"conversations": SAID}],
        Right(refused="line 2: column messages is missing, found conversations"),
    ),
    case("a named format of another form", {"conversations": SAID}, Right(LEARNT), dataset={"format": "messages"}),
    case(
        "a named format that the row has not",
        {"text": "The sea"},
        Right(refused="line 1: column messages is missing, found text"),
        dataset={"format": "messages"},
    ),
    Case(
        "messages of CSV",
        KIND,
        'messages\n"[{""role"": ""user"", ""content"": ""Hi""}, {""role"": ""assistant"", ""content"": ""It left.""}]"\n',
        Right(LEARNT),
        file="rows.csv",
    ),
    case("a user's words and nothing else", {"messages": [user("Hi")]}, Right([turn("user", "Hi")]), loss_on="all"),
    case(
        "pairs without a method that learns from them",
        {"prompt": "Where?", "chosen": "Here.", "rejected": "No."},
        Right(refused="Set method.dpo to learn from pairs"),
    ),
    case(
        "UltraFeedback without DPO",
        {"prompt": "Where?", "messages": [ASK, ANSWER], "chosen": [ASK, ANSWER], "rejected": [ASK, ASK]},
        Right(LEARNT, unused={"prompt": 1, "chosen": 1, "rejected": 1}),
    ),
]
