"""Prompts with a completion, each text or messages, for models with and without a chat template."""

from typing import Any

from lab.right_rows.case import Case, Right
from lab.right_rows.cases.words import ANSWER, ASK, END, LEARNT, assistant, system, turn, user

KIND = "prompt and completion"
QUESTION = turn("user", "Where is my parcel?")
REPLY = turn("assistant", "It left.")


def case(
    name: str,
    prompt: Any,
    completion: Any,
    right: Right,
    *,
    template: str = "chatml",
    loss_on: str = "completion",
    **columns: Any,
) -> Case:
    return Case(name, KIND, [{"prompt": prompt, "completion": completion, **columns}], right, template, loss_on=loss_on)


CASES = [
    case("texts", "Where?", "It left.", Right(LEARNT, [turn("user", "Where?") + REPLY])),
    case("texts for a base model", "Where? ", "It left.", Right(LEARNT, [f"Where? It left.{END}"]), template="none"),
    case(
        "texts for a base model, all",
        "Where? ",
        "It left.",
        Right([f"Where? It left.{END}"]),
        template="none",
        loss_on="all",
    ),
    case("messages", [ASK], [ANSWER], Right(LEARNT, [QUESTION + REPLY])),
    case("one message without a list", [ASK], ANSWER, Right(LEARNT, [QUESTION + REPLY])),
    case("messages and a text", [ASK], "It left.", Right(LEARNT, [QUESTION + REPLY])),
    case("a text and messages", "Where is my parcel?", [ANSWER], Right(LEARNT, [QUESTION + REPLY])),
    case("a completion that repeats the prompt", [ASK], [ASK, ANSWER], Right(LEARNT, [QUESTION + REPLY])),
    case(
        "a prompt with an answer in it",
        [user("Hi"), assistant("Hello."), ASK],
        [ANSWER],
        Right(LEARNT, [turn("user", "Hi") + turn("assistant", "Hello.") + QUESTION + REPLY]),
    ),
    case("a prompt with a system message", [system("Be brief."), ASK], [ANSWER], Right(LEARNT)),
    case(
        "a system column",
        "Where?",
        "It left.",
        Right(LEARNT, [turn("system", "Be brief.") + turn("user", "Where?") + REPLY]),
        system="Be brief.",
    ),
    case(
        "a system column before messages",
        [ASK],
        [ANSWER],
        Right(LEARNT, [turn("system", "Be brief.") + QUESTION + REPLY]),
        system="Be brief.",
    ),
    case(
        "messages for a base model", [ASK], [ANSWER], Right(refused="the model has no chat template"), template="none"
    ),
    case(
        "a completion of a user",
        [ASK],
        [user("Here.")],
        Right(refused="completion ends with a message of role user, expected assistant"),
    ),
    case(
        "a completion that is only the prompt",
        [ASK],
        [ASK],
        Right(refused="completion ends with the prompt, expected assistant"),
    ),
    case(
        "a completion of weight 0",
        [ASK],
        [assistant("It left.", weight=0)],
        Right(refused="completion has no assistant message to learn from"),
    ),
    case("an empty completion", "Where?", "", Right(refused="completion is empty, expected text")),
    case("a completion of null", "Where?", None, Right(refused="completion is null, expected text")),
    case("a prompt of a number", 5, "It left.", Right(refused="prompt is a number, expected text")),
    case("an empty prompt", "", "It left.", Right(LEARNT)),
    case(
        "keys of a prompt's messages",
        [user("Where?", mood="calm")],
        "It left.",
        Right(LEARNT, unused={"prompt[].mood": 1}),
    ),
    case(
        "a wrong role in a prompt",
        [{"role": "bot", "content": "Hi"}],
        "It left.",
        Right(refused="prompt[0].role is 'bot', expected one of system"),
    ),
]
