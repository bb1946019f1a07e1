"""Between text and tokens: a model's tokenizer and chat template, and token streams as text that is safe to send.

Nothing here knows HTTP or torch. `Vocabulary` is used from several threads; it only calls what tokenizers allow then.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from finetune_inference.text.grammar import GrammarError, Grammars
from finetune_model.chat import ChatTemplateError, encode_chat, has_unpaired_surrogate, render_chat
from finetune_model.model_files import load_tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What stands for bytes that are no whole character."""
FIRST_LOOK = 8
"""Characters for each token that there is room for: longer texts are looked at from their beginning. Most have about four."""
NEXT_LOOK = 4
"""How many times as long the next beginning is."""
UNCERTAIN = 256
"""Last tokens of a beginning that may come out as fewer once the text goes on: a word that was cut, for example."""


class PromptError(ValueError):
    """A prompt that cannot be made into tokens; the message says why."""


class PromptTooLongError(PromptError):
    """A prompt that was not read to its end, because its beginning has more tokens than there is room for."""

    def __init__(self, limit: int, least: int) -> None:
        super().__init__(f"it has more than {least} tokens; the model's context has {limit}")
        self.limit = limit
        self.least = least


class Vocabulary:
    """A tokenizer and its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.grammars = Grammars(tokenizer)
        # The first call may change the tokenizer (truncation that was saved with it); after that threads can share it.
        tokenizer("")

    @property
    def has_chat_template(self) -> bool:
        """Messages can be made into a prompt."""
        return bool(self._tokenizer.chat_template)

    @property
    def size(self) -> int:
        """Token ids are below this."""
        return len(self._tokenizer)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The token that ends a text, if the tokenizer names one."""
        token = self._tokenizer.eos_token_id
        return frozenset() if token is None else frozenset([token])

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Token ids of a text as the model wants it to begin; at least one. Raises PromptError.

        A text of clearly more than `limit` tokens is refused without finding out how many.
        """
        _check_unicode(text)
        if limit is not None:
            self._check_length(text, limit)
        ids: list[int] = self._tokenizer(text).input_ids
        if not ids and self._tokenizer.bos_token_id is not None:
            return [self._tokenizer.bos_token_id]
        if not ids:
            raise PromptError("the prompt is empty")
        return ids

    def encode_chat(self, messages: Sequence[dict[str, Any]], limit: int | None = None) -> list[int]:
        """Token ids of a conversation, up to where the assistant begins to speak; `limit` as for `encode`. Raises PromptError."""
        if not self.has_chat_template:
            raise PromptError("this model has no chat template; use /v1/completions")
        for message in messages:
            _check_unicode(message["content"])
        try:
            if limit is not None and sum(len(message["content"]) for message in messages) > FIRST_LOOK * limit:
                # Of the rendered text, because a template may drop most of a conversation.
                self._check_length(render_chat(self._tokenizer, messages, add_generation_prompt=True), limit)
            ids = encode_chat(self._tokenizer, messages)
        except ChatTemplateError as error:
            raise PromptError(str(error)) from None
        if not ids:
            raise PromptError("the model's chat template made an empty prompt of these messages")
        return ids

    def _check_length(self, text: str, limit: int) -> None:
        """Raise PromptTooLongError if a beginning has too many tokens: megabytes of text keep a thread busy for a minute."""
        end = FIRST_LOOK * limit
        while end < len(text):
            least = len(self._tokenizer(text[:end]).input_ids) - UNCERTAIN
            if least > limit:
                raise PromptTooLongError(limit, least)
            end *= NEXT_LOOK

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, without special ones."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_text(self, token_id: int) -> str:
        """One token as text, special or not; a token that is a part of a character shows the replacement character."""
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def prepare_token_bytes(self) -> None:
        """Make now what `token_bytes` needs, which takes up to two seconds the first time."""
        with suppress(GrammarError):
            self.grammars.prepare()

    def token_bytes(self, token_id: int) -> bytes | None:
        """One token as bytes; those of tokens in a row make whole characters where each alone may not. None if unknown."""
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


def load_vocabulary(path: str, revision: str | None = None) -> Vocabulary:
    """The tokenizer of a local folder, or of a hub repository. Raises OSError or ValueError; never runs code from there."""
    return Vocabulary(load_tokenizer(path, revision))
