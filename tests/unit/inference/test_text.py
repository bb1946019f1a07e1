"""Token streams as text: the chunks together are the text, for any tokens."""

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune_inference.engine.interface import Finished, Generated, ScoredToken
from finetune_inference.text.answer_decoder import AnswerDecoder, StopTexts, TextRules
from finetune_inference.text.detokenizer import Detokenizer
from finetune_inference.text.vocabulary import PromptError, PromptTooLongError, Vocabulary
from lab.fixtures.tiny_model import make_tiny_tokenizer

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tiny_tokenizer()


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Any) -> Vocabulary:
    return Vocabulary(tokenizer)


def streamed(vocabulary: Vocabulary, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(vocabulary)
    return [*[detokenizer.push(token) for token in ids], detokenizer.flush()]


@settings(deadline=None, max_examples=150)
@given(text=st.text(max_size=80))
def test_the_chunks_of_any_text_are_the_text(vocabulary: Vocabulary, text: str) -> None:
    # The text of a special token is that token, which has no text.
    assume(not any(special in text for special in vocabulary.special_tokens.values()))
    chunks = streamed(vocabulary, vocabulary.encode(text) if text else [])
    assert "".join(chunks) == text


@settings(deadline=None, max_examples=150)
@given(ids=st.lists(st.integers(0, 300), max_size=60))
def test_the_chunks_of_any_tokens_are_their_text(vocabulary: Vocabulary, ids: list[int]) -> None:
    """Random tokens are mostly broken characters, as the answers of a bad model are."""
    assert "".join(streamed(vocabulary, ids)) == vocabulary.decode(ids)


def test_half_a_character_is_held_back(vocabulary: Vocabulary) -> None:
    ids = vocabulary.encode("a\N{GRINNING FACE}b")
    assert streamed(vocabulary, ids) == ["a", "", "", "", "\N{GRINNING FACE}", "b", ""]


@settings(deadline=None, max_examples=300)
@given(
    chunks=st.lists(st.text("ab", max_size=3), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_before_its_first_stop_text_however_it_is_cut(chunks: list[str], stops: list[str]) -> None:
    matcher = StopTexts(stops)
    given_out = ""
    for chunk in chunks:
        given_out += matcher.push(chunk)
        if matcher.found:
            break
    else:
        given_out += matcher.flush()
    text = "".join(chunks)
    ends = [i for i in range(len(text)) if any(text.startswith(stop, i) for stop in stops)]
    assert (matcher.found is not None) == bool(ends)
    # A longer stop text that began earlier may have been complete later than a shorter one: then the shorter one counts.
    assert text.startswith(given_out)
    assert len(given_out) >= ends[0] if ends else given_out == text
    assert not any(stop in given_out for stop in stops)


def test_an_answer_counts_the_token_that_ended_it_and_does_not_show_it(vocabulary: Vocabulary) -> None:
    answer = AnswerDecoder(vocabulary, TextRules())
    ids = vocabulary.encode("hi")
    deltas = [answer.feed(Generated(ScoredToken(token))) for token in ids]
    last = answer.feed(Finished("stop", len(ids) + 1))
    assert "".join(delta.text for delta in [*deltas, last]) == "hi"
    assert last.completion_tokens == len(ids) + 1


def test_a_chat_is_formatted_by_the_models_own_template(vocabulary: Vocabulary) -> None:
    ids = vocabulary.encode_chat([{"role": "user", "content": "hi"}])
    text = "".join(vocabulary.token_text(token) for token in ids)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "refuses these messages"),
        ("{{ 1 + 'a' }}", "fails on these messages"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages"),
        ("", "no chat template"),
    ],
)
def test_a_template_that_refuses_is_a_problem_of_the_prompt(tokenizer: Any, template: str | None, words: str) -> None:
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    with pytest.raises(PromptError, match=words):
        Vocabulary(other).encode_chat([{"role": "user", "content": "hi"}])


def test_text_that_is_not_unicode_is_a_problem_of_the_prompt(vocabulary: Vocabulary) -> None:
    with pytest.raises(PromptError, match="surrogate"):
        vocabulary.encode("\ud800")


class Counting:
    """A tokenizer that notes how much it was given to read."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.longest = 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.longest = max(self.longest, len(text))
        return self._tokenizer(text, **options)

    def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
        rendered = self._tokenizer.apply_chat_template(*arguments, **options | {"tokenize": False})
        return self(rendered, add_special_tokens=False).input_ids if options["tokenize"] else rendered

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_a_giant_prompt_is_refused_without_reading_it(tokenizer: Any, *, chat: bool) -> None:
    counting = Counting(tokenizer)
    vocabulary = Vocabulary(counting)
    giant = "How do I reset my password? " * 100_000
    with pytest.raises(PromptTooLongError, match="more than"):
        vocabulary.encode_chat([{"role": "user", "content": giant}], 512) if chat else vocabulary.encode(giant, 512)
    assert counting.longest < 20_000


@pytest.mark.parametrize("limit", [100, 400])
def test_a_prompt_that_fits_is_read_whole_however_long_its_tokens_are(vocabulary: Vocabulary, limit: int) -> None:
    # 14 characters a token: longer than what is looked at first.
    text = "<|endoftext|>" * limit
    assert vocabulary.encode(text, limit) == vocabulary.encode(text)
    messages = [{"role": "user", "content": text}]
    assert vocabulary.encode_chat(messages, limit) == vocabulary.encode_chat(messages)


def test_a_template_may_leave_out_most_of_a_giant_chat(tokenizer: Any) -> None:
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ messages[-1]['content'] }}"
    messages = [{"role": "user", "content": "a" * 1_000_000}, {"role": "user", "content": "hi"}]
    assert Vocabulary(other).encode_chat(messages, 16) == Vocabulary(other).encode("hi")
