"""What the tuned model answers to held-out rows, generated greedily, beside what it should have answered."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from typing import Any, Final

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from finetune_trainer.dataset import model_length
from finetune_trainer.errors import is_out_of_memory, one_line
from finetune_trainer.evaluation.prompts import Question
from finetune_trainer.memory.out_of_memory import in_halves
from finetune_trainer.model.loaded import BaseModel

logger = logging.getLogger(__name__)

ROWS_PER_BATCH: Final = 16
"""Answers that are generated at the same time. Like prompts are in one batch, so that little of it is padding."""
MAX_NEW_TOKENS: Final = 128
"""Tokens of an answer that does not end by itself, unless the configuration says otherwise."""
LOG_SECONDS: Final = 10.0
"""Pause between two lines about how far it is."""


def answer(
    model: Any, base: BaseModel, questions: Sequence[Question], max_new_tokens: int | None, between: Callable[[], None]
) -> tuple[list[str], list[str]]:
    """Answers and wanted answers as text, in one order; `between` is called before each token, and may raise to stop.

    `model` is the peft model with its adapter active. Nothing is sampled, so the same weights give the same answers.
    """
    model.eval()
    ordered = sorted(questions, key=lambda question: len(question.prompt))
    answers: list[list[int]] = []
    told = time.monotonic()
    prompts = [question.prompt for question in ordered]
    for room, batch in _batches(prompts, max_new_tokens or MAX_NEW_TOKENS, model_length(base.model.config)):
        if time.monotonic() - told > LOG_SECONDS:
            told = time.monotonic()
            logger.info("held-out rows are answered rows=%d of=%d", len(answers), len(ordered))
        for part in in_halves(partial(_generate, model, base, room, between), batch):
            answers += part
    decode = partial(base.tokenizer.decode, skip_special_tokens=True)
    return [decode(ids) for ids in answers], [decode(question.wanted) for question in ordered]


def why_none(error: Exception) -> str:
    """What is wrong, and what to do about it, if `answer` raised something else than a stop."""
    if is_out_of_memory(error):
        remedy = "lower evaluation.maxNewTokens, or give the trainer more memory"
    else:
        remedy = "the log says where; ask for exact_match instead, which needs no generated answers"
    return f"generating answers raised {type(error).__name__} ({one_line(error)}): {remedy}"


def _batches(
    prompts: Sequence[list[int]], max_new_tokens: int, length: int | None
) -> Iterator[tuple[int, list[list[int]]]]:
    """Prompts that may be answered together, and by how many tokens: a model has no positions beyond its length.

    `prompts` are in the order of their lengths. Padding takes positions, so that prompts with less room are among their like.
    """

    def room(prompt: list[int]) -> int:
        return max_new_tokens if length is None else min(max_new_tokens, length - len(prompt))

    for tokens, alike in groupby(prompts, key=room):
        while batch := list(islice(alike, ROWS_PER_BATCH)):
            yield tokens, batch


def _generate(
    model: Any, base: BaseModel, max_new_tokens: int, between: Callable[[], None], prompts: Sequence[list[int]]
) -> list[list[int]]:
    """Token ids of the answers, without what follows their end."""
    width = max(map(len, prompts))
    # Padded on the left, so that all answers begin at the same place.
    ids = torch.tensor([[base.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ends = end_tokens(model, base.tokenizer)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=base.pad_token_id,
    )

    def is_done(*_: Any, **__: Any) -> bool:
        between()
        return False

    between()
    with torch.inference_mode(), _only_settings(model.get_base_model(), config):
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([is_done]),
        )
    return [_until_end(row, ends) for row in output[:, width:].tolist()]


@contextlib.contextmanager
def _only_settings(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Within this context the model has no other settings than these.

    Whatever a caller of `generate` leaves unset is otherwise the model's own: beams, a penalty for repetitions (which counts
    the padding among them), strings to stop at, several answers per prompt.
    """
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer, by the model's generation config and by its tokenizer."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None}


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
