"""Which tokens of a row carry loss, exactly, whatever the row's format and the model's chat template."""

from typing import Any

import pytest

from finetune_trainer import data
from finetune_trainer.data import IGNORED
from finetune_trainer.errors import TrainingError
from lab.fixtures.datasets import prepare

pytestmark = pytest.mark.model

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def learnt(row: data.TokenRow, tokenizer: Any) -> str:
    """The text of the tokens that carry loss."""
    text: str = tokenizer.decode([label for label in row.labels if label != IGNORED])
    return text


def tokenize(rows: list[Any], tokenizer: Any, loss_on: str = "completion", max_length: int = 512) -> data.Tokenized:
    return data.tokenize(prepare(rows, loss_on=loss_on), tokenizer, max_length=max_length, loss_on=loss_on)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is my order?"},
    {"role": "assistant", "content": "It left\nthis morning."},
    {"role": "user", "content": "Thank you"},
    {"role": "assistant", "content": "Grüße 👋"},
]


def test_in_a_conversation_exactly_the_assistants_words_and_ends_of_turn_carry_loss(tokenizer: Any) -> None:
    row = tokenize([{"messages": CHAT}], tokenizer).rows[0]
    assert learnt(row, tokenizer) == "It left\nthis morning.<|im_end|>Grüße 👋<|im_end|>"
    assert tokenizer.decode(row.input_ids).endswith("<|im_start|>assistant\nGrüße 👋<|im_end|>\n")


THREE_TURNS = [*CHAT, {"role": "user", "content": "Anything else?"}, {"role": "assistant", "content": "No\n\n"}]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((None, None, None), "It left\nthis morning.<|im_end|>Grüße 👋<|im_end|>No\n\n<|im_end|>"),
        ((1, 1, 1), "It left\nthis morning.<|im_end|>Grüße 👋<|im_end|>No\n\n<|im_end|>"),
        ((0, 1, 0), "Grüße 👋<|im_end|>"),
        ((1, 0, 1), "It left\nthis morning.<|im_end|>No\n\n<|im_end|>"),
        ((0, 0, 1), "No\n\n<|im_end|>"),
    ],
)
def test_the_weights_of_three_turns_say_exactly_which_of_them_are_learnt(
    tokenizer: Any, weights: tuple[int | None, ...], expected: str
) -> None:
    chat = [dict(message) for message in THREE_TURNS]
    for message, weight in zip([m for m in chat if m["role"] == "assistant"], weights, strict=True):
        message["weight"] = weight
    row = tokenize([{"messages": chat}], tokenizer).rows[0]
    assert learnt(row, tokenizer) == expected
    assert list(row.input_ids) == list(tokenize([{"messages": THREE_TURNS}], tokenizer).rows[0].input_ids)


def test_a_turn_of_weight_zero_carries_no_loss(tokenizer: Any) -> None:
    chat = [*CHAT[:2], {**CHAT[2], "weight": 0}, *CHAT[3:]]
    assert learnt(tokenize([{"messages": chat}], tokenizer).rows[0], tokenizer) == "Grüße 👋<|im_end|>"


def test_a_prompt_and_its_completion_become_a_conversation_if_the_model_has_a_chat_template(tokenizer: Any) -> None:
    row = tokenize([{"prompt": "Hi", "completion": " Hello"}], tokenizer).rows[0]
    assert (
        tokenizer.decode(row.input_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n Hello<|im_end|>\n"
    )
    assert learnt(row, tokenizer) == " Hello<|im_end|>"


def test_without_a_chat_template_the_completion_and_its_end_carry_loss(plain_tokenizer: Any) -> None:
    row = tokenize([{"prompt": "2+2=", "completion": "4"}], plain_tokenizer).rows[0]
    assert learnt(row, plain_tokenizer) == "4<|im_end|>"
    assert list(row.input_ids[: -row.loss_tokens]) == plain_tokenizer("2+2=")["input_ids"]


@pytest.mark.parametrize("row", [{"text": "The sea"}, {"messages": CHAT}, {"prompt": "a", "completion": "b"}])
def test_loss_on_all_means_every_token(tokenizer: Any, row: dict[str, Any]) -> None:
    tokens = tokenize([row], tokenizer, loss_on="all").rows[0]
    assert list(tokens.labels) == list(tokens.input_ids)


def test_a_conversation_needs_a_model_with_a_chat_template(plain_tokenizer: Any) -> None:
    with pytest.raises(TrainingError, match="line 1: the model has no chat template"):
        tokenize([GOOD], plain_tokenizer)


def test_a_template_that_refuses_a_row_is_quoted_with_the_row() -> None:
    from lab.fixtures.tiny_model import make_tiny_tokenizer

    strict = make_tiny_tokenizer()
    strict.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + strict.chat_template
    )
    with pytest.raises(TrainingError, match="line 2: the model's chat template refuses these messages: no system role"):
        tokenize([GOOD, {"messages": CHAT}], strict)


def test_each_answer_is_learnt_in_the_form_in_which_it_will_be_asked() -> None:
    from lab.fixtures.tiny_model import make_tiny_tokenizer

    counting = make_tiny_tokenizer()
    counting.chat_template = "{{ messages | length }}" + counting.chat_template
    tokenized = tokenize([{"messages": CHAT}], counting)
    texts = [(counting.decode(row.input_ids)[0], learnt(row, counting)) for row in tokenized.rows]
    assert texts == [("4", "Grüße 👋<|im_end|>"), ("2", "It left\nthis morning.<|im_end|>")]
    assert tokenized.turns.split_rows == 1


def test_a_pair_is_refused_if_its_answers_cannot_be_learnt_together() -> None:
    from lab.fixtures.tiny_model import make_tiny_tokenizer

    counting = make_tiny_tokenizer()
    counting.chat_template = "{{ messages | length }}" + counting.chat_template
    examples = prepare([{"messages": CHAT}])
    with pytest.raises(TrainingError, match=r"line 1: .* the answers of a pair cannot be learnt together"):
        data.tokenize(examples, counting, max_length=512, loss_on="completion", pairs=True)


def test_an_answer_that_cannot_follow_its_prompt_is_refused() -> None:
    from lab.fixtures.tiny_model import make_tiny_tokenizer

    secretive = make_tiny_tokenizer()
    secretive.chat_template = "{% if add_generation_prompt %}" + secretive.chat_template + "{% endif %}"
    with pytest.raises(TrainingError, match=r"line 1: .* renders messages\[2\] differently when it is asked for"):
        tokenize([{"messages": CHAT}], secretive)


def test_a_thinking_template_learns_every_answer_as_it_is_asked() -> None:
    from lab.fixtures.chat_templates import FAMILIES

    qwen3 = next(family for family in FAMILIES if family.name == "qwen3").tokenizer()
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "why"}]
    rows = tokenize(
        [{"messages": [*turns, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}], qwen3
    ).rows
    assert [learnt(row, qwen3) for row in rows] == [
        "<think>\n\n</think>\n\nd<|im_end|>",
        "<think>\nwhy\n</think>\n\nb<|im_end|>",
    ]


def test_a_prompt_and_an_answer_that_would_merge_are_tokenized_apart() -> None:
    from lab.fixtures.chat_templates import FAMILIES

    blank = next(family for family in FAMILIES if family.name == "blank").tokenizer()
    row = tokenize([{"messages": GOOD["messages"]}], blank).rows[0]
    prompt = blank("User: Hi\nAssistant: ", add_special_tokens=False)["input_ids"]
    assert list(row.input_ids[: len(prompt)]) == prompt
    assert learnt(row, blank) == "Hello</s>"


@pytest.mark.parametrize(
    "row", [{"text": "<s>[INST] Hi [/INST] Yes</s>"}, {"prompt": "<s>[INST] Hi [/INST]", "completion": " Yes</s>"}]
)
def test_text_that_is_rendered_already_is_not_rendered_again(row: dict[str, Any]) -> None:
    from lab.fixtures.chat_templates import FAMILIES

    llama2 = next(family for family in FAMILIES if family.name == "llama2").tokenizer()
    tokenized = tokenize([row], llama2)
    ids = list(tokenized.rows[0].input_ids)
    assert (ids.count(llama2.bos_token_id), ids.count(llama2.eos_token_id)) == (1, 1)
    assert tokenized.turns.raw_rows == ("prompt" in row)
    if "prompt" in row:
        assert learnt(tokenized.rows[0], llama2) == " Yes</s>"


def test_the_tokens_that_end_answers_are_counted(tokenizer: Any) -> None:
    tokenized = tokenize([{"messages": CHAT}], tokenizer)
    assert [(end.id, end.text, end.answers) for end in tokenized.turns.ends] == [
        (tokenizer.eos_token_id, "<|im_end|>", 2)
    ]
    assert tokenized.turns.unended == 0


def test_answers_without_an_end_are_counted() -> None:
    from lab.fixtures.chat_templates import FAMILIES

    falcon = next(family for family in FAMILIES if family.name == "falcon").tokenizer()
    tokenized = tokenize([GOOD], falcon)
    assert (tokenized.turns.ends, tokenized.turns.unended) == ((), 1)


def test_a_message_of_weight_zero_is_not_learnt_with_loss_on_all(tokenizer: Any) -> None:
    chat = [CHAT[0], {**CHAT[1], "weight": 0}, {**CHAT[2], "weight": 0}, *CHAT[3:]]
    tokenized = tokenize([{"messages": chat}], tokenizer, loss_on="all")
    text = learnt(tokenized.rows[0], tokenizer)
    assert "order" not in text
    assert "It left" not in text
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nThank you<|im_end|>")


def test_long_rows_are_cut_and_rows_left_without_loss_are_dropped_and_counted(tokenizer: Any) -> None:
    long_prompt = {"prompt": "word " * 50, "completion": "never seen"}
    long_answer = {"prompt": "Hi", "completion": "word " * 50}
    result = tokenize([long_prompt, long_answer, {"prompt": "Hi", "completion": "Hello"}], tokenizer, max_length=40)
    assert (len(result.rows), result.truncated, result.dropped) == (2, 2, 1)
    assert max(len(row.input_ids) for row in result.rows) == 40
    with pytest.raises(TrainingError, match="All 1 rows of dataset lose every token with loss when truncated to"):
        tokenize([long_prompt], tokenizer, max_length=40)
