"""Answers of a conversation as they will be asked: for each one, the prompt that a server will render, and its continuation.

A conversation is one text if the template renders every prompt as the beginning of it. Templates that render the past
differently (Qwen3 removes the thoughts of earlier turns, gpt-oss ends the last turn with another token) get one text per answer.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from finetune_model.chat import DEFAULT_SETTINGS, ChatSettings, Conversation, prepare_chat, render_prepared
from finetune_model.shapes import MAX_SHAPES, Plan, Rendering, Shape, ShapeReader

_THOUGHT: Final = re.compile(r"<(think|thinking|thought|reasoning|seed:think)>\s*(</\1>\s*)?\Z")
"""A thought that a generation prompt opens, or leaves empty, at its end."""

_OCCURRENCES: Final = 4
"""Places of a message's text in its prompt that are tried, the last first."""


class DifferentTurnError(ValueError):
    """An answer that does not continue its prompt in the template's rendering; the message names it."""


class UnpredictableTemplateError(Exception):
    """Two conversations of one shape that the template renders differently, so that every prompt has to be rendered."""


@dataclass(frozen=True, order=True)
class Answer:
    """Range of characters: from the end of the generation prompt to the end of the turn, its end token included."""

    start: int
    end: int


@dataclass
class TurnText:
    """A rendered conversation with its learnt answers, in order."""

    text: str
    answers: list[Answer] = field(default_factory=list)
    ignored: list[Answer] = field(default_factory=list)
    """Ranges of other messages that must not be learnt, where everything else is."""
    count: int | None = None
    """Number of messages that the text is the rendering of; None if no rendering is equal to it."""


class TurnRenderer:
    """Renders conversations with one tokenizer and one set of settings."""

    def __init__(
        self, tokenizer: Any, settings: ChatSettings = DEFAULT_SETTINGS, *, every_prompt: bool = False
    ) -> None:
        """`every_prompt` renders each prompt of each row, also where a row of the same shape shows where it ends."""
        self._tokenizer = tokenizer
        self._settings = settings
        self._shapes = None if every_prompt else _shape_reader(tokenizer.chat_template)
        self._plans: dict[Shape, Plan] = {}
        self._ends = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._eos: str | None = tokenizer.eos_token

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        learnt: Sequence[int],
        tools: Sequence[Any] | None = None,
        *,
        ignored: Sequence[int] = (),
    ) -> list[TurnText]:
        """Render a conversation so that each learnt message continues its prompt; the whole conversation comes first.

        `learnt` and `ignored` are indexes of `messages`, in order. Raises ChatTemplateError, DifferentTurnError for an answer that
        no text can hold, and UnpredictableTemplateError if rows of a shape turn out to be rendered differently.
        """
        chat = prepare_chat(messages, tools, self._settings)
        shape = self._shapes.shape_of(chat, learnt) if self._shapes and not ignored else None
        plan = self._plans.get(shape) if shape else None
        is_due = plan is None or plan.is_due()
        planned = plan.apply(chat, partial(self._render, chat)) if plan and plan.is_useful else None
        if planned is not None and not is_due:
            return [TurnText(one.text, [Answer(*place) for place in one.answers], count=one.count) for one in planned]
        whole = self._render(chat, len(chat.messages))
        texts = self._shared(whole, len(chat.messages), [self._asked(chat, whole, index) for index in learnt])
        texts[0].ignored = [self._place(chat, whole, index) for index in ignored]
        if shape:
            self._learn(shape, chat, texts, planned)
        return texts

    def _learn(
        self, shape: Shape, chat: Conversation, texts: Sequence[TurnText], planned: list[Rendering] | None
    ) -> None:
        """Compare the rendering of all prompts with the one by the shape's plan, or learn a plan from it."""
        renderings = [
            Rendering(text.text, [(answer.start, answer.end) for answer in text.answers], text.count)
            for text in texts
            if text.count is not None
        ]
        if planned is not None:
            if planned != renderings:
                raise UnpredictableTemplateError
            return
        plan = Plan.learn(chat, renderings) if len(renderings) == len(texts) else None
        if len(self._plans) >= MAX_SHAPES:
            self._plans.clear()
        if plan:
            if known := self._plans.get(shape):
                plan.uses, plan.misses = known.uses, known.misses
            self._plans[shape] = plan

    def _asked(self, chat: Conversation, whole: str, index: int) -> tuple[str, Answer, int | None]:
        """Return an answer after its prompt, both as they are asked."""
        position = index + chat.added
        prompt = self._render(chat, position, add_generation_prompt=True) if position else ""
        after = whole if position == len(chat.messages) - 1 else self._render(chat, position + 1)
        text = _continued(prompt, after, chat.messages[position])
        if text is None and position:
            text = _continued_elsewhere(prompt, after, chat.messages[position - 1], chat.messages[position])
        if text is None:
            raise DifferentTurnError(
                f"the model's chat template renders messages[{index}] differently when it is asked for, so that it cannot be "
                "learnt as it will be asked; set its weight to 0, or chat.template to a template that begins answers as its "
                "generation prompt does"
            )
        return text, Answer(len(prompt), self._end_of_turn(text, len(prompt))), position + 1 if text == after else None

    def _place(self, chat: Conversation, whole: str, index: int) -> Answer:
        """Return the range of a message in the whole conversation."""
        position = index + chat.added
        before = self._render(chat, position) if position else ""
        after = self._render(chat, position + 1)
        if not (whole.startswith(before) and whole.startswith(after)):
            raise DifferentTurnError(
                f"the model's chat template renders messages[{index}] differently inside a longer conversation, so that its "
                "weight of 0 cannot be applied; set hyperparameters.lossOn to completion"
            )
        return Answer(len(before), len(after))

    def _shared(self, whole: str, count: int, asked: list[tuple[str, Answer, int | None]]) -> list[TurnText]:
        """Put each answer into a text that holds it and its prompt as they are asked; few texts are better than many."""
        texts = [TurnText(whole, count=count)]
        for text, answer, rendered in reversed(asked):
            host = next((known for known in texts if known.text.startswith(text[: answer.end])), None)
            if host is None:
                host = TurnText(text, count=rendered)
                texts.append(host)
            host.answers.insert(0, Answer(answer.start, self._with_end_token(host.text, answer.end)))
        return texts

    def _end_of_turn(self, text: str, start: int) -> int:
        """Return the end of a turn: after the end-of-turn token, without the line break that templates append."""
        trimmed = len(text.rstrip())
        ends_with_special = text.endswith(self._ends, 0, trimmed) if self._ends else False
        return trimmed if ends_with_special and trimmed > start else len(text)

    def _with_end_token(self, text: str, end: int) -> int:
        """Include the end token that some templates append to a turn only when another one follows."""
        if self._eos and text.startswith(self._eos, end) and not text.endswith(self._ends, 0, end):
            return end + len(self._eos)
        return end

    def _render(self, chat: Conversation, count: int, *, add_generation_prompt: bool = False) -> str:
        """Render the first `count` messages."""
        return render_prepared(
            self._tokenizer,
            chat.messages[:count],
            tools=chat.tools,
            template_kwargs=self._settings.template_kwargs,
            add_generation_prompt=add_generation_prompt,
        )


def _shape_reader(template: Any) -> ShapeReader | None:
    from jinja2 import TemplateError

    if not isinstance(template, str):
        return None
    try:
        return ShapeReader(template)
    except TemplateError:
        return None


def _continued(prompt: str, after: str, message: Mapping[str, Any]) -> str | None:
    """Return the prompt with the answer after it; None if `after`, the chat up to the answer, does not hold it.

    Reasoning templates (DeepSeek-R1, QwQ) open a thought in the generation prompt, and leave thoughts out of messages. The
    thought is then the message's reasoning, or empty.
    """
    if after.startswith(prompt) and len(after) > len(prompt):
        return after
    bare = prompt.rstrip()
    if after.startswith(bare) and (rest := after[len(bare) :].lstrip()):
        return prompt + rest
    opened = _THOUGHT.search(prompt)
    if opened is None or not after.startswith(prompt[: opened.start()]):
        return None
    name, is_closed = opened.group(1), opened.group(2) is not None
    rest = after[opened.start() :]
    if is_closed:
        return prompt + rest
    start, end = f"<{name}>", f"</{name}>"
    if rest.lstrip().startswith(start):
        return prompt + rest.lstrip().removeprefix(start).lstrip("\n")
    thought = _thought_of(message, start, end)
    if rest.startswith(end):
        return prompt + thought + rest
    return f"{prompt}{thought}\n{end}\n\n{rest.lstrip()}"


def _continued_elsewhere(prompt: str, after: str, asked: Mapping[str, Any], answer: Mapping[str, Any]) -> str | None:
    """Return the prompt with the answer after it where the template renders earlier text differently; None if it cannot be found.

    Mistral's templates write the system text into the last message of a user only if no answer follows it. What follows the
    message before the answer is then the same in both renderings: its text, the end of the turn and the generation prompt.
    """
    content = str(asked.get("content") or "")
    for form in (content.strip() or content, json.dumps(content, ensure_ascii=False)):
        start = prompt.rfind(form) if form else -1
        # A short text may occur in the generation prompt, too.
        for _ in range(_OCCURRENCES):
            turn = prompt[start:]
            place = after.rfind(turn)
            if start < 0 or place < 0:
                break
            text = after[place + len(turn) :]
            # A text that the answer holds as well would be found there.
            if text and not any(turn in str(value) for value in answer.values()):
                return prompt + text
            start = prompt.rfind(form, 0, start)
    return None


def _thought_of(message: Mapping[str, Any], start: str, end: str) -> str:
    """Return the reasoning of a message, from its own field or from the beginning of its content."""
    content = message.get("content")
    inside = content.split(end)[0].split(start)[-1] if isinstance(content, str) and end in content else ""
    return str(message.get("reasoning_content") or message.get("reasoning") or inside).strip("\n")
