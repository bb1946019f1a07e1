"""A model's tokenizer and chat template.

Knows neither HTTP nor torch. Several threads use a `Vocabulary`, so it calls only thread-safe methods of the tokenizer.
"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from finetune_inference.text.grammar import GrammarError, Grammars
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


class PromptError(ValueError):
    """A prompt that cannot be encoded; the message gives the reason."""


class PromptTooLongError(PromptError):
    """A prompt that was not encoded to its end, because a prefix already exceeds the limit."""

    def __init__(self, limit: int, least: int) -> None:
        super().__init__(f"it has more than {least} tokens; the model's context length is {limit}")
        self.limit = limit
        self.least = least


class Vocabulary:
    """A tokenizer, its chat template, and the settings that chats are rendered with."""

    def __init__(self, tokenizer: Any, settings: ChatSettings = DEFAULT_SETTINGS) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self.grammars = Grammars(tokenizer)
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

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Encode a text, with the tokenizer's start token once; at least one token. Raises PromptError.

        A text with clearly more than `limit` tokens is refused before all of it is encoded.
        """
        _check_unicode(text)
        if limit is not None:
            self._check_length(text, limit)
        ids = encode_raw(self._tokenizer, [text])[0]
        if not ids and self._tokenizer.bos_token_id is not None:
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
    ) -> list[int]:
        """Encode a conversation with the generation prompt, or with its last message left open. Raises PromptError.

        `template_kwargs` are variables of the template for this request. `limit` as for `encode`.
        """
        if not self.has_chat_template:
            raise PromptError("this model has no chat template; use /v1/completions")
        try:
            text = render_chat(
                self._tokenizer,
                messages,
                tools=tools,
                settings=self._settings,
                template_kwargs=template_kwargs,
                add_generation_prompt=not continue_final_message,
                continue_final_message=continue_final_message,
            )
        except ChatTemplateError as error:
            raise PromptError(str(error)) from None
        _check_unicode(text)
        if limit is not None:
            self._check_length(text, limit)
        ids = encode_rendered(self._tokenizer, text)
        if not ids:
            raise PromptError("the model's chat template renders these messages as an empty prompt")
        return ids

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

    def decode(self, ids: Sequence[int]) -> str:
        """Decode tokens, without special ones."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_text(self, token_id: int) -> str:
        """Decode one token, special or not; a part of a character becomes the replacement character."""
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def prepare_token_bytes(self) -> None:
        """Prepare `token_bytes`, which takes up to two seconds the first time."""
        with suppress(GrammarError):
            self.grammars.prepare()

    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the bytes of one token, which may be a part of a character; None if unknown."""
        text = self.token_text(token_id)
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
