"""Preference pairs in the forms of TRL, UltraFeedback, OpenAI, HH and LLaMA-Factory: the common beginning is taken once."""

from typing import Any

from lab.right_rows.case import Case, Right
from lab.right_rows.cases.words import ANSWER, ASK, END, TRACK, assistant, call, result, said, system, turn, user

KIND = "preference pairs"
NO = assistant("No idea.")
BOTH = [f"It left.{END}", f"No idea.{END}"]
QUESTION = turn("user", "Where is my parcel?")
TEXTS = [QUESTION + turn("assistant", "It left."), QUESTION + turn("assistant", "No idea.")]
PLAIN = [turn("user", "Where?") + turn("assistant", answer) for answer in ("It left.", "No idea.")]
SAME = "and rejected are equal, expected two different answers"


def case(name: str, row: dict[str, Any] | list[dict[str, Any]], right: Right, **more: Any) -> Case:
    return Case(name, KIND, row if isinstance(row, list) else [row], right, **{"pairs": True, **more})


def pair(prompt: Any, chosen: Any, rejected: Any, **columns: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **columns}


def implicit(chosen: Any, rejected: Any, **columns: Any) -> dict[str, Any]:
    return {"chosen": chosen, "rejected": rejected, **columns}


HH = "\n\nHuman: Where is my parcel?\n\nAssistant: "

CASES = [
    # Explicit
    case("texts", pair("Where?", "It left.", "No idea."), Right(BOTH, PLAIN)),
    case("messages", pair([ASK], [ANSWER], [NO]), Right(BOTH, TEXTS)),
    case("single messages", pair([ASK], ANSWER, NO), Right(BOTH, TEXTS)),
    case("a text and messages", pair("Where is my parcel?", [ANSWER], [NO]), Right(BOTH, TEXTS)),
    case(
        "texts for a base model",
        pair("Where? ", "It left.", "No idea."),
        Right(BOTH, [f"Where? It left.{END}", f"Where? No idea.{END}"]),
        template="none",
    ),
    case(
        "a system column",
        pair("Where is my parcel?", "It left.", "No idea.", system="Be brief."),
        Right(BOTH, [turn("system", "Be brief.") + text for text in TEXTS]),
    ),
    case(
        "Orca's system and question",
        {"system": "Be brief.", "question": "Where is my parcel?", "chosen": "It left.", "rejected": "No idea."},
        Right(BOTH, [turn("system", "Be brief.") + text for text in TEXTS]),
    ),
    case(
        "an answer in the prompt carries no loss",
        pair([user("Hi"), assistant("Hello."), ASK], [ANSWER], [NO]),
        Right(BOTH),
    ),
    case(
        "scores beside a pair",
        pair([ASK], [ANSWER], [NO], score_chosen=8.0, score_rejected=3.0),
        Right(BOTH, unused={"score_chosen": 1, "score_rejected": 1}),
    ),
    # The prompt is there twice
    case("messages that repeat the prompt", pair([ASK], [ASK, ANSWER], [ASK, NO]), Right(BOTH, TEXTS)),
    case(
        "a system column and answers that repeat the prompt",
        pair([ASK], [ASK, ANSWER], [ASK, NO], system="Be brief."),
        Right(BOTH, [turn("system", "Be brief.") + text for text in TEXTS]),
    ),
    case("one answer repeats the prompt", pair([ASK], [ASK, ANSWER], [NO]), Right(BOTH, TEXTS)),
    case("texts that repeat the prompt", pair("Where?", "Where? It left.", "Where? No idea."), Right(BOTH, PLAIN)),
    case(
        "texts that repeat the prompt, for a base model",
        pair("Where?", "Where? It left.", "Where? No idea."),
        Right([f" It left.{END}", f" No idea.{END}"], [f"Where? It left.{END}", f"Where? No idea.{END}"]),
        template="none",
    ),
    case(
        "one pair of two begins with its prompt by chance",
        [pair("Ada", "Ada wrote it.", "Ada left."), pair("Where?", "It left.", "No idea.")],
        Right([f"Ada wrote it.{END}", f"Ada left.{END}", *BOTH]),
    ),
    case(
        "most pairs repeat their prompt",
        [pair("Where?", "Where? It left.", "Where? No idea.")] * 2 + [pair("When?", "Now.", "Never.")],
        Right(refused="repeats the prompt at the start of both answers in 2 of 3 pairs, but not in line 3"),
    ),
    case("only one answer begins with the prompt", pair("It", "It left.", "No idea."), Right(BOTH)),
    case(
        "UltraFeedback",
        pair("Where is my parcel?", [ASK, ANSWER], [ASK, NO], prompt_id="1", messages=[ASK, ANSWER]),
        Right(BOTH, TEXTS, unused={"prompt_id": 1, "messages": 1}),
    ),
    case(
        "UltraFeedback with a system message",
        pair("Where is my parcel?", [system("Be brief."), ASK, ANSWER], [system("Be brief."), ASK, NO]),
        Right(BOTH, [turn("system", "Be brief.") + text for text in TEXTS]),
    ),
    case(
        "a prompt that is in no answer",
        pair("When?", [ASK, ANSWER], [ASK, NO]),
        Right(refused="prompt is in no message with which both chosen and rejected begin"),
    ),
    case(
        "a turn that both answers share",
        pair([user("Hi")], [assistant("Hello."), ASK, ANSWER], [assistant("Hello."), ASK, NO]),
        Right(BOTH),
    ),
    case("an answer that goes on", pair([ASK], [ANSWER], [ANSWER, user("Sure?"), NO]), Right([BOTH[0], "".join(BOTH)])),
    # Implicit
    case("a common beginning of messages", implicit([ASK, ANSWER], [ASK, NO]), Right(BOTH, TEXTS)),
    case(
        "a common beginning of several turns",
        implicit(
            [system("Be brief."), user("Hi"), assistant("Hello."), ASK, ANSWER],
            [system("Be brief."), user("Hi"), assistant("Hello."), ASK, NO],
        ),
        Right(BOTH),
    ),
    case(
        "a system column without a prompt",
        implicit([ASK, ANSWER], [ASK, NO], system="Be brief."),
        Right(BOTH, [turn("system", "Be brief.") + text for text in TEXTS]),
    ),
    case("a common beginning of texts", implicit("Where? It left.", "Where? No idea."), Right(BOTH, PLAIN)),
    case(
        "a common beginning of words",
        implicit("The parcel left.", "The parcel lies here."),
        Right([f"left.{END}", f"lies here.{END}"]),
    ),
    case("HH's transcripts", implicit(f"{HH}It left.", f"{HH}No idea."), Right(BOTH, TEXTS)),
    case(
        "HH's longer transcripts",
        implicit(f"{HH}Hm?\n\nHuman: 42\n\nAssistant: It left.", f"{HH}Hm?\n\nHuman: 42\n\nAssistant: No idea."),
        Right(BOTH),
    ),
    case(
        "messages without a common beginning",
        implicit([ASK, ANSWER], [user("When?"), NO]),
        Right(refused="chosen and rejected have no common beginning"),
    ),
    case("answers alone", implicit([ANSWER], [NO]), Right(refused="chosen and rejected have no common beginning")),
    case(
        "texts without a common beginning",
        implicit("It left.", "No idea."),
        Right(refused="chosen and rejected have no common beginning"),
    ),
    # OpenAI, LLaMA-Factory
    case(
        "OpenAI's form",
        {
            "input": {"messages": [ASK], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [ANSWER],
            "non_preferred_output": [NO],
        },
        Right(BOTH, TEXTS, unused={"input.parallel_tool_calls": 1}),
    ),
    case(
        "OpenAI's form with tools",
        {
            "input": {"messages": [ASK], "tools": [TRACK]},
            "preferred_output": [assistant(None, tool_calls=[call('{"id": "42"}')])],
            "non_preferred_output": [NO],
        },
        Right(['<tool_call>{"name": "track", "arguments": {"id": "42"}}</tool_call>' + END, BOTH[1]]),
        template="tools",
    ),
    case(
        "OpenAI's form without messages",
        {"input": {}, "preferred_output": [ANSWER], "non_preferred_output": [NO]},
        Right(refused="input.messages is null, expected a list"),
    ),
    case(
        "OpenAI's form with equal answers",
        {"input": {"messages": [ASK]}, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]},
        Right(refused="preferred_output and non_preferred_output are equal"),
    ),
    case(
        "Alpaca's pair",
        {"instruction": "Where", "input": "is it?", "chosen": "It left.", "rejected": "No idea."},
        Right(BOTH, [turn("user", "Where\nis it?") + turn("assistant", answer) for answer in ("It left.", "No idea.")]),
    ),
    case(
        "ShareGPT's pair",
        {
            "conversations": [said("human", "Where is my parcel?")],
            "chosen": said("gpt", "It left."),
            "rejected": said("gpt", "No idea."),
        },
        Right(BOTH, TEXTS),
    ),
    # What is no pair
    case("equal texts", pair("Where?", "It left.", "It left."), Right(refused=f"chosen {SAME}")),
    case("equal messages", pair([ASK], [ANSWER], [ANSWER]), Right(refused=f"chosen {SAME}")),
    case("equal but for the weight", pair([ASK], [ANSWER], [{**ANSWER, "weight": 1}]), Right(refused=f"chosen {SAME}")),
    case("equal once the prompt is gone", pair([ASK], [ASK, ANSWER], [ANSWER]), Right(refused=f"chosen {SAME}")),
    case(
        "equal for the template",
        pair([ASK], [assistant("It left.")], [assistant("It left. ")]),
        Right(refused="1 pair of dataset, the first in line 1, have the same tokens in both answers"),
        template="refuses-system",
    ),
    case(
        "equal after cutting",
        pair("Where?", "It left " * 9 + "A", "It left " * 9 + "B"),
        Right(refused="have the same tokens in both answers when cut to hyperparameters.maxLength=40"),
        max_length=40,
    ),
    case("an empty answer", pair("Where?", "It left.", " "), Right(refused="rejected is empty, expected text")),
    case(
        "an empty message",
        pair([ASK], [ANSWER], [assistant("")]),
        Right(refused="rejected[0].content is empty, expected text"),
    ),
    case(
        "answers of two forms",
        pair([ASK], [ANSWER], "No idea."),
        Right(refused="rejected is text, expected a list of {role, content}"),
    ),
    case(
        "an answer that ends with a question",
        pair([ASK], [ANSWER], [NO, ASK]),
        Right(refused="rejected ends with a message of role user, expected assistant"),
    ),
    case(
        "an answer that begins with a question",
        pair([ASK], [user("When?"), ANSWER], [NO]),
        Right(refused="chosen goes on with a message of role user after the prompt"),
    ),
    case(
        "rows of another format", {"messages": [ASK, ANSWER]}, Right(refused="method.dpo learns from preference pairs")
    ),
    case(
        "a result after a call of the prompt",
        pair(
            [ASK, assistant(None, tool_calls=[call({"id": "42"}, id="c1")]), result("left", tool_call_id="c1")],
            [ANSWER],
            [NO],
        ),
        Right(BOTH),
        template="tools",
    ),
    # Remarks count pairs
    case(
        "a pair twice",
        [pair("Where?", "It left.", "No idea.")] * 2,
        Right([*BOTH, *BOTH], remarks=("1 of 2 training pairs repeat an earlier pair",)),
    ),
    case(
        "a prompt with two pairs is none twice",
        [pair("Where?", "It left.", "No idea."), pair("Where?", "It left.", "Hm.")],
        Right([*BOTH, BOTH[0], f"Hm.{END}"]),
    ),
    case(
        "pairs that are cut",
        pair("Where?", "It left. " * 9, "No idea. " * 9),
        Right(remarks=("1 training pairs are longer than 40 tokens and lose their end (line 1)",)),
        max_length=40,
    ),
    case(
        "keys of pairs",
        pair([ASK], [{**ANSWER, "mood": "calm"}], [NO], id=1),
        Right(
            BOTH, unused={"id": 1, "chosen[].mood": 1}, remarks=("not used of the training pairs: id (1 pair, line 1)",)
        ),
    ),
]
