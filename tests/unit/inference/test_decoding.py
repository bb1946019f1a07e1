"""A token is decoded after its predecessors, those of the prompt included: text, offsets, log-probabilities, stop texts."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_inference.api.logprobs import CompletionScores, chat_logprobs, prompt_offsets
from finetune_inference.engine.interface import Finished, Generated, PromptScored, ScoredToken
from finetune_inference.text.answer_decoder import AnswerDecoder, TextDelta, TextRules
from finetune_inference.text.vocabulary import REPLACEMENT, Vocabulary
from support.server.tokenizers import KINDS, make_tokenizer

pytestmark = pytest.mark.model

FAST = settings(deadline=None, max_examples=80)
WORDS = st.lists(
    st.sampled_from(
        ["Paris", "is", "the", "capital", "of", "France", "my", "order", "?", "  ", "ñ", "🎉", "日本", "password"]
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module", params=KINDS)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return Vocabulary(make_tokenizer(request.param))


@pytest.fixture(scope="module")
def byte_fallback() -> Vocabulary:
    return Vocabulary(make_tokenizer("byte-fallback"))


@pytest.fixture(scope="module")
def byte_level() -> Vocabulary:
    return Vocabulary(make_tokenizer("byte-level"))


def answered(
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    answer: Sequence[int],
    rules: TextRules | None = None,
    *,
    end: int | None = None,
) -> list[TextDelta]:
    """The deltas of an answer of these tokens."""
    decoder = AnswerDecoder(vocabulary, rules or TextRules(), prompt)
    deltas = []
    for token in answer:
        deltas.append(decoder.feed(Generated(ScoredToken(token, -1.0))))
        if deltas[-1].finish_reason:
            return deltas
    return [*deltas, decoder.feed(Finished("stop" if end is not None else "length", len(answer), end))]


def text_of(deltas: Sequence[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def continuation(vocabulary: Vocabulary, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of a prompt, and those that continue it with a blank and the answer."""
    ids, whole = vocabulary.encode(prompt), vocabulary.encode(f"{prompt} {answer}")
    common = next(
        (i for i, pair in enumerate(zip(ids, whole, strict=False)) if pair[0] != pair[1]), min(len(ids), len(whole))
    )
    return whole[:common], whole[common:]


def test_an_answer_keeps_the_blank_between_itself_and_the_prompt(byte_fallback: Vocabulary) -> None:
    prompt = byte_fallback.encode("The capital of France is")
    (paris,) = byte_fallback.encode("Paris", add_special_tokens=False)
    assert byte_fallback.token_text(paris) == " Paris"
    assert byte_fallback.token_text(paris, starts_text=True) == "Paris"
    assert text_of(answered(byte_fallback, prompt, [paris])) == " Paris"
    assert text_of(answered(byte_fallback, [1], [paris])) == "Paris"


@FAST
@given(prompt=WORDS, answer=WORDS)
def test_prompt_and_answer_together_are_the_text_of_all_tokens(
    vocabulary: Vocabulary, prompt: list[str], answer: list[str]
) -> None:
    before, after = continuation(vocabulary, " ".join(prompt), " ".join(answer))
    whole = vocabulary.decode(before + after)
    echo = vocabulary.decode(before)
    echo = echo.rstrip(REPLACEMENT)
    assert echo + text_of(answered(vocabulary, before, after)) == whole


LAST_TOKEN = 255
"""A token id below the size of each vocabulary."""


@FAST
@given(data=st.data())
def test_any_tokens_of_an_answer_give_the_text_that_they_add(vocabulary: Vocabulary, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, LAST_TOKEN), max_size=40))
    prompt = vocabulary.encode("Where is my order?")
    expected = vocabulary.decode(prompt + ids)[len(vocabulary.decode(prompt)) :]
    text = text_of(answered(vocabulary, prompt, ids))
    # With byte fallback, the tokenizer breaks the whole characters beside a broken one as well.
    assert text == expected or (REPLACEMENT in expected and REPLACEMENT in text)


@FAST
@given(prompt=WORDS, answer=WORDS)
def test_offsets_index_into_the_returned_text(vocabulary: Vocabulary, prompt: list[str], answer: list[str]) -> None:
    echo = " ".join(prompt)
    before, after = continuation(vocabulary, echo, " ".join(answer))
    echo = vocabulary.decode(before)
    if echo.endswith(REPLACEMENT):
        return
    deltas = answered(vocabulary, before, after)
    offsets = prompt_offsets(vocabulary, before, echo, skip_special_tokens=True)
    scored = TextDelta(prompt=[ScoredToken(token) for token in before])
    scores = CompletionScores(vocabulary, offsets, len(echo)).build([scored, *deltas])
    text = echo + text_of(deltas)
    assert len(scores.tokens) == len(before) + len(after)
    assert scores.text_offset == sorted(scores.text_offset)
    for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
        assert 0 <= offset <= len(text)
        if REPLACEMENT not in token and not token.startswith("<"):
            assert text.startswith(token, offset), (token, offset, text)


@FAST
@given(prompt=WORDS, answer=WORDS)
def test_the_bytes_of_all_tokens_are_those_of_the_text(
    vocabulary: Vocabulary, prompt: list[str], answer: list[str]
) -> None:
    before, after = continuation(vocabulary, " ".join(prompt), " ".join(answer))
    if vocabulary.decode(before).endswith(REPLACEMENT) or 0 in after:
        return  # A character in two halves, or one that the vocabulary does not have.
    deltas = answered(vocabulary, before, after)
    content = chat_logprobs(vocabulary, deltas).content
    assert b"".join(bytes(token.bytes or []) for token in content).decode() == text_of(deltas)


def test_offsets_count_characters_and_not_bytes_or_special_tokens(byte_level: Vocabulary) -> None:
    text = "🎉 is the ñ"
    ids = byte_level.encode(text)
    assert prompt_offsets(byte_level, ids, text, skip_special_tokens=True) == [0, 0, 0, 0, 1, 4, 8, 9, 9]
    the = byte_level.encode("The")
    assert prompt_offsets(byte_level, [1, *the, 2], "The", skip_special_tokens=True) == [0, *range(len(the)), 3]
    named = "a<|im_end|>b"
    assert prompt_offsets(byte_level, byte_level.encode(named), named, skip_special_tokens=True) == [0, 1, 11]


def test_an_answer_may_complete_a_character_of_the_prompt(byte_level: Vocabulary) -> None:
    ids = byte_level.encode("a🎉b")
    assert text_of(answered(byte_level, ids[:3], ids[3:])) == "🎉b"
    assert text_of(answered(byte_level, ids[:5], ids[5:])) == "b"


def test_a_stop_text_that_is_a_special_token_stops_there(byte_level: Vocabulary) -> None:
    start, end = (i for i, text in byte_level.special_tokens.items() if text.startswith("<|im"))
    ids = byte_level.encode("hi", add_special_tokens=False)
    newline = byte_level.encode("\n")

    def stopped(*tokens: int, stops: Sequence[str], **rules: Any) -> tuple[str, str | None]:
        deltas = answered(byte_level, [5], tokens, TextRules(stops=tuple(stops), **rules))
        return text_of(deltas), deltas[-1].finish_reason

    assert stopped(*ids, end, *ids, stops=["<|im_end|>"]) == ("hi", "stop")
    assert stopped(*ids, start, *ids, stops=["<|im_end|>"]) == ("hihi", "length")
    # Such a stop text may go on, and may begin with text.
    assert stopped(*ids, end, *ids, end, *newline, *ids, stops=["<|im_end|>\n"]) == ("hihi", "stop")
    assert stopped(*ids, end, *ids, stops=["i<|im_end|>"]) == ("h", "stop")
    # A model can write the text of the token as ordinary text, too.
    spelled = [i for character in "<|im_end|>" for i in byte_level.encode(character)]
    assert stopped(*ids, *spelled, *ids, stops=["<|im_end|>"]) == ("hi", "stop")
    assert stopped(*ids, end, *ids, stops=["<|im_end|>"], include_stop=True) == ("hi<|im_end|>", "stop")
    assert stopped(*ids, end, *ids, stops=["<|im_end|>"], skip_special_tokens=False) == ("hi", "stop")
    assert stopped(*ids, end, *ids, stops=["never"], skip_special_tokens=False) == ("hi<|im_end|>hi", "length")


def test_a_stop_text_is_searched_after_the_fewest_tokens(byte_level: Vocabulary) -> None:
    ids = byte_level.encode("a") * 3 + byte_level.encode("b")
    assert text_of(answered(byte_level, [5], ids, TextRules(stops=("a",)))) == ""
    assert text_of(answered(byte_level, [5], ids, TextRules(stops=("a",), min_tokens=2))) == "aa"
    assert text_of(answered(byte_level, [5], ids, TextRules(stops=("aa",), min_tokens=2))) == "aaab"


def test_an_answer_ends_with_its_stop_text_or_end_token_if_that_was_wanted(byte_level: Vocabulary) -> None:
    ids = byte_level.encode("order?")
    assert text_of(answered(byte_level, [5], ids, TextRules(stops=("der",), include_stop=True))) == "order"
    (x,) = byte_level.encode("x")
    for rules, text in ((TextRules(include_stop=True), "order?x"), (TextRules(), "order?")):
        assert text_of(answered(byte_level, [5], ids, rules, end=x)) == text


def test_a_scored_prompt_comes_as_it_is(byte_level: Vocabulary) -> None:
    tokens = [ScoredToken(5)]
    assert AnswerDecoder(byte_level, TextRules()).feed(PromptScored(tokens)).prompt is tokens
