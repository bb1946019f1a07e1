"""Predictions: the tuned model's answers to held-out rows, generated greedily, with their references."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from finetune_trainer.dataset import model_length
from finetune_trainer.errors import is_out_of_memory, one_line
from finetune_trainer.evaluation.prompts import Prompt
from finetune_trainer.memory.out_of_memory import halve_on_oom
from finetune_trainer.model.loaded import BaseModel

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ROWS_PER_BATCH: Final = 16
"""Answers generated at the same time. Prompts of similar length share a batch, so that little of it is padding."""
MAX_NEW_TOKENS: Final = 128
"""Maximum tokens of an answer, unless the configuration sets a number."""
LOG_SECONDS: Final = 10.0
"""Seconds between two log lines about progress."""


def generate_predictions(
    model: "PeftModel",
    base: BaseModel,
    prompts: Sequence[Prompt],
    max_new_tokens: int | None,
    check_stop: Callable[[], None],
    ends: Sequence[int] = (),
) -> tuple[list[str], list[str]]:
    """Generate answers; return predictions and references as text, in the same order, shortest prompt first.

    `model` has its adapter active, and `ends` are the tokens that its answers learnt to end with. Nothing is sampled, so the same weights give the same answers. `check_stop` is called
    before each token, and may raise to stop.
    """
    model.eval()
    ordered = sorted(prompts, key=lambda prompt: len(prompt.ids))
    answers: list[list[int]] = []
    logged = time.monotonic()
    ids = [prompt.ids for prompt in ordered]
    all_ends = end_tokens(model, base.tokenizer) | set(ends)
    for new_tokens, batch in _batches(ids, max_new_tokens or MAX_NEW_TOKENS, model_length(base.model.config)):
        if time.monotonic() - logged > LOG_SECONDS:
            logged = time.monotonic()
            logger.info("answering held-out rows rows=%d of=%d", len(answers), len(ordered))
        for part in halve_on_oom(partial(_generate, model, base, new_tokens, all_ends, check_stop), batch):
            answers += part
    decode = partial(base.tokenizer.decode, skip_special_tokens=True)
    return [decode(answer) for answer in answers], [decode(prompt.reference) for prompt in ordered]


def describe_failure(error: Exception) -> str:
    """Describe an error of `generate_predictions`, and what to do about it."""
    if is_out_of_memory(error):
        remedy = "lower evaluation.maxNewTokens, or give the trainer more memory"
    else:
        remedy = "see the traceback in the log, or use exact_match, which needs no generated answers"
    return f"generating answers raised {type(error).__name__} ({one_line(error)}): {remedy}"


def _batches(
    prompts: Sequence[list[int]], max_new_tokens: int, length: int | None
) -> Iterator[tuple[int, list[list[int]]]]:
    """Yield the new tokens that fit into the model's positions, and prompts that may be answered together.

    `prompts` are sorted by length. Padding takes positions too, so prompts that leave less than `max_new_tokens` are batched
    only with prompts of the same length.
    """

    def new_tokens(prompt: list[int]) -> int:
        return max_new_tokens if length is None else min(max_new_tokens, length - len(prompt))

    for tokens, group in groupby(prompts, key=new_tokens):
        while batch := list(islice(group, ROWS_PER_BATCH)):
            yield tokens, batch


def _generate(
    model: "PeftModel",
    base: BaseModel,
    max_new_tokens: int,
    ends: set[int],
    check_stop: Callable[[], None],
    prompts: Sequence[list[int]],
) -> list[list[int]]:
    """Generate the token ids of the answers, up to their end token."""
    width = max(map(len, prompts))
    # Padded on the left, so that all answers begin at the same position.
    ids = torch.tensor([[base.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=base.pad_token_id,
    )

    def is_done(*_: Any, **__: Any) -> bool:
        check_stop()
        return False

    check_stop()
    with torch.inference_mode(), _only_settings(model.get_base_model(), config):
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([is_done]),
        )
    return [_until_end(row, ends) for row in output[:, width:].tolist()]


@contextlib.contextmanager
def _only_settings(model: "PreTrainedModel", config: GenerationConfig) -> Iterator[None]:
    """Replace the model's generation settings by these within this context.

    `generate` takes any setting that its caller leaves unset from the model: beams, a repetition penalty (which counts
    padding), stop strings, several answers per prompt.
    """
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


def end_tokens(model: "PeftModel", tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the tokens that end an answer, from the model's generation config and its tokenizer."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None}


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
