"""Preference pairs in rows: a prompt and two answers, of which the first is wanted.

The common beginning is taken once, however a row writes it: as a prompt, again in both answers, or only there. All checks are
on what remains, because that is what a run compares.
"""

from collections.abc import Sequence
from dataclasses import replace

from finetune_model.messages import Message, MessageError, kind, normalize_tools, parsed, report_unused
from finetune_trainer.data.messages import from_transcript, is_beginning, is_chat, without_weights
from finetune_trainer.data.problems import invalid
from finetune_trainer.data.row_parts import RowParts, assistant, history, instruction, user
from finetune_trainer.data.rows import Example

ANSWERS = ("chosen", "rejected")


def read_explicit(parts: RowParts) -> Example:
    """Return the pair of a row with prompt, chosen and rejected, each text or a conversation."""
    prompt, column = parts.value("prompt"), parts.names["prompt"]
    if is_chat(prompt):
        return _chat(parts, parts.with_system(parts.conversation(prompt, column)))
    text = parts.text("prompt", may_be_blank=True)
    if _has_chats(parts):
        return _chat(parts, parts.with_system([user(text)]), text)
    return _texts(parts, [user(text)], text)


def read_implicit(parts: RowParts) -> Example:
    """Return the pair of a row whose prompt is the common beginning of chosen and rejected."""
    if _has_chats(parts):
        return _chat(parts, [])
    chosen, rejected = (parts.text(part) for part in ANSWERS)
    transcripts = from_transcript(chosen), from_transcript(rejected)
    if transcripts[0] and transcripts[1]:
        return _pair(parts, [], transcripts[0], transcripts[1])
    prompt, gap = _common_words(chosen, rejected)
    if not prompt:
        raise MessageError(*_no_beginning(parts))
    answers = (text[len(prompt) + len(gap) :] for text in (chosen, rejected))
    return _prompted(parts, [user(prompt)], prompt, gap, *answers)


def read_openai(parts: RowParts) -> Example:
    """Return the pair of a row in the form of OpenAI's preference fine-tuning: input, preferred and non-preferred output."""
    column = parts.names["input"]
    given = parsed(parts.value("input"), "{", column)
    if not isinstance(given, dict):
        raise MessageError(column, f"is {kind(given)}, expected {{messages, tools}}")
    report_unused(given, {"messages", "tools", "functions"}, column, parts.unused, "input")
    prompt = parts.conversation(given.get("messages"), f"{column}.messages")
    columns = ("preferred_output", "non_preferred_output")
    chosen, rejected = (parts.answer(parts.value(part), parts.names[part], prompt) for part in columns)
    tools = normalize_tools(given.get("tools"), functions=given.get("functions"), unused=parts.unused)
    return replace(_pair(parts, prompt, chosen, rejected, columns), tools=tools)


def read_alpaca(parts: RowParts) -> Example:
    """Return the pair of a row with Alpaca's instruction and two outputs."""
    prompt = instruction(parts)
    context = [*history(parts), user(prompt)]
    return _chat(parts, parts.with_system(context)) if _has_chats(parts) else _texts(parts, context, prompt)


def read_sharegpt(parts: RowParts) -> Example:
    """Return the pair of a row with a ShareGPT conversation and two answers to its last question."""
    return _chat(parts, parts.chat("conversations"))


def _has_chats(parts: RowParts) -> bool:
    return any(is_chat(parts.value(part)) for part in ANSWERS)


def _chat(parts: RowParts, prompt: list[Message], text: str | None = None) -> Example:
    """Return a pair of conversations. `text` is the prompt of a row that writes it as text."""
    for part in ANSWERS:
        if not is_chat(parts.value(part)):
            raise MessageError(parts.names[part], f"is {kind(parts.value(part))}, expected a list of {{role, content}}")
    chosen, rejected = (parts.answer(parts.value(part), parts.names[part], prompt) for part in ANSWERS)
    if text is not None and chosen and chosen[0]["role"] != "assistant":
        # Both answers are whole conversations, in which the prompt is one message among others.
        chosen, rejected = (parts.conversation(parts.value(part), parts.names[part]) for part in ANSWERS)
        common = chosen[: _common_messages(chosen, rejected)]
        if not any(message["role"] == "user" and message["content"].strip() == text.strip() for message in common):
            raise MessageError(
                parts.names["prompt"],
                f"is in no message with which both {parts.names['chosen']} and "
                f"{parts.names['rejected']} begin; expected the user's message there",
            )
        prompt = []
    return _pair(parts, prompt, chosen, rejected)


def _pair(
    parts: RowParts,
    prompt: list[Message],
    chosen: list[Message],
    rejected: list[Message],
    columns: tuple[str, str] = ANSWERS,
) -> Example:
    """Return a pair whose prompt has all messages with which both answers begin, as far as each keeps one."""
    names = [parts.names[column] for column in columns]
    if not prompt:
        chosen, rejected = parts.with_system(chosen), parts.with_system(rejected)
    for name, answer in zip(names, (chosen, rejected), strict=True):
        last = answer[-1]["role"] if answer else prompt[-1]["role"]
        if last != "assistant" or not answer:
            ends = (
                f"a message of role {last}, expected assistant"
                if last != "assistant"
                else "the prompt, expected an answer"
            )
            raise MessageError(name, f"ends with {ends}")
    if without_weights(chosen) == without_weights(rejected):
        raise MessageError(names[0], f"and {names[1]} are equal, expected two different answers")
    common = _common_messages(chosen, rejected)
    if not prompt and not common:
        raise MessageError(*_no_beginning(parts, names))
    prompt, chosen, rejected = [*prompt, *chosen[:common]], chosen[common:], rejected[common:]
    for name, answer in zip(names, (chosen, rejected), strict=True):
        if answer[0]["role"] != "assistant":
            raise MessageError(
                name, f"goes on with a message of role {answer[0]['role']} after the prompt, expected assistant"
            )
    for part, answer in zip(columns, (chosen, rejected), strict=True):
        parts.check_learnt(answer, part)
    tools = parts.tools() if "tools" in parts.names else None
    return Example(where=parts.where, prompt=prompt, chosen=chosen, rejected=rejected, tools=tools)


def _common_messages(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """Return how many messages both answers begin with, so that the assistant goes on in both."""
    most = min(len(chosen), len(rejected)) - 1
    return next(
        (
            count
            for count in range(most, 0, -1)
            if chosen[count]["role"] == rejected[count]["role"] == "assistant"
            and is_beginning(chosen[:count], rejected)
        ),
        0,
    )


def _texts(parts: RowParts, context: list[Message], prompt: str) -> Example:
    """Return a pair of texts. Answers that repeat the prompt are shortened later, when all rows are known to do so."""
    chosen, rejected = (parts.text(part) for part in ANSWERS)
    return _prompted(parts, context, prompt, "", chosen, rejected)


def _prompted(parts: RowParts, context: list[Message], prompt: str, gap: str, chosen: str, rejected: str) -> Example:
    """Return a pair of texts, as a chat if more than a question and an answer stands in the row."""
    if chosen == rejected:
        names = [parts.names[part] for part in ANSWERS]
        raise MessageError(names[0], f"and {names[1]} are equal, expected two different answers")
    tools = parts.tools()
    context = parts.with_system(context)
    if len(context) == 1 and tools is None:
        return Example(where=parts.where, prompt=prompt, gap=gap, chosen=chosen, rejected=rejected)
    return Example(
        where=parts.where, prompt=context, chosen=[assistant(chosen)], rejected=[assistant(rejected)], tools=tools
    )


def _common_words(chosen: str, rejected: str) -> tuple[str, str]:
    """Return the words with which both texts begin and the white space behind them, so that each keeps a word."""
    common = _common(chosen, rejected)
    # A word that only begins alike belongs to the answers.
    end = len(common)
    while end and not (common[end - 1].isspace() and chosen[end:].strip() and rejected[end:].strip()):
        end -= 1
    prompt = common[:end].rstrip()
    return prompt, common[len(prompt) : end]


def _no_beginning(parts: RowParts, names: Sequence[str] | None = None) -> tuple[str, str]:
    names = names or [parts.names[part] for part in ANSWERS]
    return names[
        0
    ], f"and {names[1]} have no common beginning; expected the prompt at the start of both, or a column prompt"


def without_repeated_prompts(pairs: list[Example], name: str = "dataset") -> list[Example]:
    """Return pairs whose answers no longer repeat the prompt, if the answers of all pairs do.

    A few answers may begin with the words of their prompts; a dataset whose answers all do holds whole texts. Raises
    TrainingError (DatasetInvalid) if most do.
    """
    texts = [pair for pair in pairs if isinstance(pair.prompt, str)]
    others = [pair for pair in texts if not _repeats(pair)]
    if not texts or 2 * len(others) >= len(texts):
        return pairs
    if others:
        raise invalid(
            f"{name} repeats the prompt at the start of both answers in {len(texts) - len(others)} of {len(texts)} pairs, but "
            f"not in {others[0].where}; write all pairs in one way"
        )
    return [_shortened(pair) if isinstance(pair.prompt, str) else pair for pair in pairs]


def _repeats(pair: Example) -> bool:
    prompt = str(pair.prompt).rstrip()
    answers = str(pair.chosen), str(pair.rejected)
    return bool(prompt) and all(one.startswith(prompt) and one[len(prompt) :].strip() for one in answers)


def _shortened(pair: Example) -> Example:
    prompt = str(pair.prompt).rstrip()
    rests = [str(answer)[len(prompt) :] for answer in (pair.chosen, pair.rejected)]
    gaps = [rest[: len(rest) - len(rest.lstrip())] for rest in rests]
    gap = _common(*gaps)
    return replace(pair, prompt=prompt, gap=gap, chosen=rests[0][len(gap) :], rejected=rests[1][len(gap) :])


def _common(first: str, second: str) -> str:
    """Return the characters with which both texts begin."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return first[:index]
    return min(first, second, key=len)
