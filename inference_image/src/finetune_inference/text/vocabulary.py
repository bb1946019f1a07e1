"""A model's tokenizer and chat template.

Knows neither HTTP nor torch. Several threads use a `Vocabulary`, so it calls only thread-safe methods of the tokenizer.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Self

from finetune_inference.text.answer_format import AnswerFormat, learn
from finetune_inference.text.grammar import GrammarError, Grammars
from finetune_inference.text.left_out import first_left_out
from finetune_inference.text.template_variables import RENDERING_ARGUMENTS, template_variables
from finetune_model.chat import (
    DEFAULT_SETTINGS,
    ChatSettings,
    ChatTemplateError,
    encode_raw,
    encode_rendered,
    render_chat,
)
from finetune_model.model_files import load_tokenizer
from finetune_model.token_ids import tokens_without_embedding
from finetune_model.unicode import has_unpaired_surrogate

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""Character that stands for bytes that are not a whole character."""
FIRST_PREFIX = 8
"""Characters per token of the limit. Of a longer text a prefix is encoded first, because most tokens have about four."""
PREFIX_GROWTH = 4
"""Factor by which the next prefix is longer."""
UNCERTAIN_TOKENS = 256
"""Last tokens of a prefix that may become fewer when the text continues, for example at a word that was cut."""

TAIL = 32
"""Last tokens of a prompt in which a block of reasoning may have been opened."""


class PromptError(ValueError):
    """A prompt that cannot be encoded; the message gives the reason."""


class LeftOutError(PromptError):
    """A conversation of which the chat template leaves something out, so that the model would answer another one."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: the model's chat template leaves out {problem}")
        self.field = field


class PromptTooLongError(PromptError):
    """A prompt that was not encoded to its end, because a prefix already exceeds the limit."""

    def __init__(self, limit: int, least: int) -> None:
        super().__init__(f"it has more than {least} tokens; the model's context length is {limit}")
        self.limit = limit
        self.least = least


class TemplateVariableError(PromptError):
    """A variable for the chat template that has no effect."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"chat template variable {name}: {problem}")
        self.name = name
        self.problem = problem


class Vocabulary:
    """A tokenizer, its chat template, and the settings that chats are rendered with."""

    def __init__(self, tokenizer: Any, settings: ChatSettings = DEFAULT_SETTINGS) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self.grammars = Grammars(tokenizer)
        self._kept: frozenset[int] = frozenset()
        """Special tokens that `decode` returns as text, because they are markers of the answer's form."""
        self._formats: dict[tuple[str, str], AnswerFormat] = {}
        self._token_texts: dict[int, str] = {}
        """Results of `token_text` by token id."""
        # The first call may change the tokenizer (truncation that was saved with it); afterwards threads can share it.
        tokenizer("")

    def with_settings(self, settings: ChatSettings) -> "Vocabulary":
        """Return the same vocabulary for an adapter with other settings, which shares the tokenizer."""
        if settings == self._settings:
            return self
        other = copy.copy(self)
        other._settings = settings  # noqa: SLF001 - of the same class
        return other

    @property
    def has_chat_template(self) -> bool:
        """True if the tokenizer has a chat template."""
        return bool(self._tokenizer.chat_template)

    @property
    def stop_ids(self) -> frozenset[int]:
        """End token of the tokenizer, if it has one, and those that the adapter's answers learnt to end with."""
        token = self._tokenizer.eos_token_id
        return self._settings.end_tokens if token is None else self._settings.end_tokens | {token}

    def encode(self, text: str, limit: int | None = None, *, add_special_tokens: bool = True) -> list[int]:
        """Encode a text, with the tokenizer's start token once; at least one token. Raises PromptError.

        A text with clearly more than `limit` tokens is refused before all of it is encoded.
        """
        _check_unicode(text)
        if limit is not None:
            self._check_length(text, limit)
        ids = encode_raw(self._tokenizer, [text])[0] if add_special_tokens else encode_rendered(self._tokenizer, text)
        if not ids and add_special_tokens and self._tokenizer.bos_token_id is not None:
            return [self._tokenizer.bos_token_id]
        if not ids:
            raise PromptError("the prompt is empty")
        return ids

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        limit: int | None = None,
        *,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Encode a conversation with the generation prompt, or with its last message left open. Raises PromptError.

        `template_kwargs` are variables of the template for this request. `limit` as for `encode`.
        """
        if not self.has_chat_template:
            raise PromptError("this model has no chat template; use /v1/completions")
        self._check_variables(template_kwargs or {})

        def render(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None) -> str:
            return render_chat(
                self._tokenizer,
                messages,
                tools=tools,
                settings=self._settings,
                template_kwargs=template_kwargs,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                continue_final_message=continue_final_message,
            )

        try:
            text = render(messages, tools)
        except ChatTemplateError as error:
            raise PromptError(str(error)) from None
        _check_unicode(text)
        if limit is not None:
            self._check_length(text, limit)
        if left_out := first_left_out(messages, tools, text, render):
            raise LeftOutError(*left_out)
        ids = encode_rendered(self._tokenizer, text)
        if not ids:
            raise PromptError("the model's chat template renders these messages as an empty prompt")
        return ids

    def reads_variable(self, name: str) -> bool:
        """Return whether the chat template reads a variable, as far as it can be known."""
        known = template_variables(self._tokenizer)
        return known is None or name in known

    def _check_variables(self, template_kwargs: Mapping[str, Any]) -> None:
        """Raise TemplateVariableError for a variable that the chat template does not read, because it would change nothing."""
        if not template_kwargs:
            return
        known = template_variables(self._tokenizer)
        for name in template_kwargs:
            if name in RENDERING_ARGUMENTS:
                raise TemplateVariableError(name, "cannot be set; the server sets it")
            if known is not None and name not in known:
                read = ", ".join(sorted(known - RENDERING_ARGUMENTS)) or "none"
                raise TemplateVariableError(name, f"this model's chat template does not read it; it reads: {read}")

    def _check_length(self, text: str, limit: int) -> None:
        """Raise PromptTooLongError if a prefix has too many tokens, because encoding megabytes of text takes a minute."""
        end = FIRST_PREFIX * limit
        while end < len(text):
            least = len(self._tokenizer(text[:end]).input_ids) - UNCERTAIN_TOKENS
            if least > limit:
                raise PromptTooLongError(limit, least)
            end *= PREFIX_GROWTH

    def without_embedding(self, ids: Sequence[int], rows: int) -> str | None:
        """Return the names of tokens for which a model with `rows` embeddings has none; None if it has all."""
        return tokens_without_embedding(ids, rows, self._tokenizer)

    def answer_format(self, calls: str = "auto", reasoning: str = "auto") -> AnswerFormat:
        """Return the form in which the model writes reasoning and tool calls; see `answer_format.learn`."""
        if (calls, reasoning) not in self._formats:
            self._formats[calls, reasoning] = learn(self._tokenizer, calls, reasoning)
        return self._formats[calls, reasoning]

    def keeping(self, markers: Sequence[str]) -> Self:
        """Return a copy whose `decode` keeps the special tokens that are a part of these markers."""
        special = self.special_tokens
        ids = [i for i, name in special.items() if name.strip() and any(name in marker for marker in markers)]
        kept = copy.copy(self)
        kept._kept = frozenset(ids)  # noqa: SLF001 - of the same class
        kept.special_tokens = {i: name for i, name in special.items() if i not in kept._kept}  # noqa: SLF001 - as above
        return kept

    def tail(self, ids: Sequence[int]) -> str:
        """Return the text of the last tokens of a prompt, special ones included."""
        text: str = self._tokenizer.decode(ids[-TAIL:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def special_id(self, text: str) -> int | None:
        """Return the id of a special token; None if the text is not one."""
        return next((i for i, name in self.special_tokens.items() if name == text), None)

    def grammar_term(self, text: str) -> str:
        """Return a text as a term of a Lark grammar, in which special tokens go by their ids."""
        special = {name: i for i, name in self.special_tokens.items() if name and name in text}
        if not special:
            return json.dumps(text) if text else ""
        pieces = re.split(f"({'|'.join(map(re.escape, sorted(special, key=len, reverse=True)))})", text)
        return " ".join(f"<[{special[piece]}]>" if piece in special else json.dumps(piece) for piece in pieces if piece)

    @cached_property
    def special_tokens(self) -> dict[int, str]:
        """Texts of the special tokens by id, which `decode` leaves out."""
        added = self._tokenizer.added_tokens_decoder
        return {token_id: token.content for token_id, token in added.items() if token.special}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decode tokens, without special ones, except those that are kept."""
        if skip_special_tokens and self._kept:
            ids, skip_special_tokens = [i for i in ids if i not in self.special_tokens], False
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def token_text(self, token_id: int, *, starts_text: bool = False) -> str:
        """Return the text that a token, special or not, adds to the text before it, or with `starts_text` to none.

        A SentencePiece token loses its blank at the start of a text. A part of a character becomes the replacement character.
        """
        if special := self.special_tokens.get(token_id):
            return special
        if starts_text:
            return self.decode([token_id], skip_special_tokens=False)
        known = self._token_texts.get(token_id)
        if known is None:
            text = self.decode([*self._predecessor, token_id], skip_special_tokens=False)
            before = self.decode(self._predecessor, skip_special_tokens=False)
            known = (
                text[len(before) :] if text.startswith(before) else self.decode([token_id], skip_special_tokens=False)
            )
            self._token_texts[token_id] = known
        return known

    @cached_property
    def _predecessor(self) -> list[int]:
        """Ordinary tokens, after which others are decoded."""
        ids: list[int] = self._tokenizer("a", add_special_tokens=False).input_ids
        return ids

    def prepare_token_bytes(self) -> None:
        """Prepare `token_bytes`, which takes up to two seconds the first time."""
        with suppress(GrammarError):
            self.grammars.prepare()

    def token_bytes(self, token_id: int, *, starts_text: bool = False) -> bytes | None:
        """Return the bytes of `token_text`, which may be a part of a character; None if unknown."""
        text = self.token_text(token_id, starts_text=starts_text)
        if REPLACEMENT not in text:
            return text.encode()
        try:
            return self.grammars.token_bytes(token_id)
        except GrammarError:
            return None


def _check_unicode(text: str) -> None:
    if has_unpaired_surrogate(text):
        raise PromptError("the text is not valid Unicode: it contains an unpaired surrogate")


def load_vocabulary(path: str, revision: str | None = None, settings: ChatSettings = DEFAULT_SETTINGS) -> Vocabulary:
    """Load the tokenizer of a local folder or a hub repository, never running its code. Raises OSError or ValueError."""
    return Vocabulary(load_tokenizer(path, revision), settings)
