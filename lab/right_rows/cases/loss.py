"""Which messages carry loss, with either value of lossOn."""

from lab.right_rows.case import Case, Right
from lab.right_rows.cases.words import ANSWER, ASK, CHAT, END, LEARNT, assistant, system, turn, user

KIND = "loss"
WRONG = "It is lost."


def two(**flags: object) -> list[dict[str, object]]:
    """A wrong answer with flags, and the right one."""
    return [ASK, assistant(WRONG, **flags), user("Sure?"), ANSWER]


def chat(name: str, messages: list, right: Right, **more) -> Case:  # type: ignore[type-arg, no-untyped-def]
    return Case(name, KIND, [{"messages": messages}], right, **more)


def all_but(text: str) -> list[str]:
    """Everything that lossOn all learns of `two`, without one turn."""
    turns = [
        turn("user", "Where is my parcel?"),
        turn("assistant", WRONG),
        turn("user", "Sure?"),
        turn("assistant", "It left."),
    ]
    return ["".join(one for one in turns if one != text)]


BOTH = [f"{WRONG}{END}It left.{END}"]

CASES = [
    chat("no flag", two(), Right(BOTH)),
    chat("weight 0", two(weight=0), Right(LEARNT)),
    chat("weight 1", two(weight=1), Right(BOTH)),
    chat("weight 0.0", two(weight=0.0), Right(LEARNT)),
    chat("train false", two(train=False), Right(LEARNT)),
    chat("train true", two(train=True), Right(BOTH)),
    chat("loss false", two(loss=False), Right(LEARNT)),
    chat("train and weight agree", two(train=False, weight=0), Right(LEARNT)),
    chat(
        "train and weight contradict each other",
        two(train=True, weight=0),
        Right(refused="messages[1] has weight and train that contradict"),
    ),
    chat("weight of a half", two(weight=0.5), Right(refused="messages[1].weight is 0.5, expected 0 or 1")),
    chat("weight of text", two(weight="0"), Right(refused="messages[1].weight is text, expected 0 or 1")),
    chat("train of text", two(train="no"), Right(refused="messages[1].train is text, expected true or false")),
    chat("train of 0", two(train=0), Right(refused="messages[1].train is a number, expected true or false")),
    chat("weight of a user", [user("Hi", weight=0), ANSWER], Right(LEARNT)),
    chat(
        "nothing to learn",
        [ASK, assistant(WRONG, weight=0)],
        Right(refused="messages has no assistant message to learn from"),
    ),
    chat(
        "nothing to learn with train",
        [ASK, assistant(WRONG, train=False)],
        Right(refused="messages has no assistant message to learn from"),
    ),
    chat("all, no flag", two(), Right(all_but("")), loss_on="all"),
    chat("all, weight 0", two(weight=0), Right(all_but(turn("assistant", WRONG))), loss_on="all"),
    chat("all, train false", two(train=False), Right(all_but(turn("assistant", WRONG))), loss_on="all"),
    chat(
        "all, weight 0 of a user",
        [user("Sure?", weight=0), ANSWER],
        Right([turn("assistant", "It left.")]),
        loss_on="all",
    ),
    chat(
        "all, train false of a system message",
        [system("Be brief.", train=False), *CHAT],
        Right([turn("user", "Where is my parcel?") + turn("assistant", "It left.")]),
        loss_on="all",
    ),
    chat(
        "all, weight 0 of everything",
        [user("Hi", weight=0), assistant("Hi", weight=0)],
        Right(refused="messages has no message to learn from"),
        loss_on="all",
    ),
    Case(
        "ShareGPT's train",
        KIND,
        [
            {
                "conversations": [
                    {"from": "human", "value": "Where?"},
                    {"from": "gpt", "value": WRONG, "train": False},
                    {"from": "human", "value": "Sure?"},
                    {"from": "gpt", "value": "It left."},
                ]
            }
        ],
        Right(LEARNT),
    ),
    Case("prompts of messages are context", KIND, [{"prompt": two()[:3], "completion": [ANSWER]}], Right(LEARNT)),
    Case(
        "prompts of messages with all",
        KIND,
        [{"prompt": two()[:3], "completion": [ANSWER]}],
        Right(all_but("")),
        loss_on="all",
    ),
    Case("text", KIND, [{"text": "The sea"}], Right([f"The sea{END}"])),
]
