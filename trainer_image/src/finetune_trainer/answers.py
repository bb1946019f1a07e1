"""What the tuned model answers to held-out rows, generated greedily, beside what it should have answered."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch
from transformers import GenerationConfig

from finetune_trainer.base_model import BaseModel
from finetune_trainer.out_of_memory import in_halves
from finetune_trainer.questions import Question

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
    """Answers and wanted answers as text, in one order; `between` is called before each batch, and may raise to stop.

    `model` is the peft model with its adapter active. Nothing is sampled, so the same weights give the same answers.
    """
    model.eval()
    ordered = sorted(questions, key=lambda question: len(question.prompt))
    answers: list[list[int]] = []
    told = time.monotonic()
    for begin in range(0, len(ordered), ROWS_PER_BATCH):
        between()
        if time.monotonic() - told > LOG_SECONDS:
            told = time.monotonic()
            logger.info("held-out rows are answered rows=%d of=%d", begin, len(ordered))
        prompts = [question.prompt for question in ordered[begin : begin + ROWS_PER_BATCH]]
        for part in in_halves(partial(_generate, model, base, max_new_tokens or MAX_NEW_TOKENS), prompts):
            answers += part
    decode = partial(base.tokenizer.decode, skip_special_tokens=True)
    return [decode(ids) for ids in answers], [decode(question.wanted) for question in ordered]


def _generate(model: Any, base: BaseModel, max_new_tokens: int, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Token ids of the answers, without what follows their end."""
    width = max(map(len, prompts))
    # Padded on the left, so that all answers begin at the same place.
    ids = torch.tensor([[base.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ends = end_tokens(model, base.tokenizer)
    # None of the model's own settings, which may ask for sampling.
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=base.pad_token_id,
    )
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
        )
    return [_until_end(row, ends) for row in output[:, width:].tolist()]


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer, by the model's generation config and by its tokenizer."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None}


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
