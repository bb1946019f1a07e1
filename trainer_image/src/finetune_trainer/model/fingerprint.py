"""Fingerprint of a tuned model: log-probabilities that its endpoint must reproduce (see `finetune_api.fingerprint`).

The prompts are fixed and neutral. Each is rendered by the model's chat template and continued greedily by the tuned model;
the continuation is scored with the adapter on and off. Serving replays the same token ids.
"""

import contextlib
from typing import Any, Final

from finetune_api.fingerprint import Fingerprint, Probe
from finetune_model.chat import DEFAULT_SETTINGS, ChatSettings, ChatTemplateError, encode_chat

PROMPTS: Final = (
    "What is the capital of France?",
    "How do I reset my password?",
    "Write one sentence about the sea.",
)
CONTINUATION_TOKENS: Final = 12
"""Scored tokens per prompt: enough to average over, few enough for a termination message of 4096 bytes."""
MAX_PROMPT_TOKENS: Final = 200
"""Most tokens of a rendered prompt; templates with a longer preamble are replaced by the bare prompt."""
CLOCK: Final = "strftime_now"
"""Function by which transformers tells a chat template the date."""
DIGITS: Final = 5
"""Decimals kept: float32 runs on two machines agree to about as many."""


def take_fingerprint(
    model: Any,
    tokenizer: Any,
    dtype: str,
    served: contextlib.AbstractContextManager[None] | None = None,
    settings: ChatSettings = DEFAULT_SETTINGS,
) -> Fingerprint:
    """Score the prompts with a peft model whose adapter is active; within `served` it has the weights that endpoints serve.

    `settings` are those that the endpoint will render the adapter's chats with.
    """
    model.eval()
    prompts = [prompt_ids(tokenizer, prompt, settings) for prompt in PROMPTS]
    continued = [prompt + _continue_greedily(model, prompt) for prompt in prompts]
    with served or contextlib.nullcontext():
        probes = [_probe(model, ids, len(prompt)) for ids, prompt in zip(continued, prompts, strict=True)]
    return Fingerprint(
        probes=probes, dtype=dtype, chat=PROMPTS[0] if renders_the_same(tokenizer, PROMPTS[0], settings) else None
    )


def prompt_ids(tokenizer: Any, prompt: str, settings: ChatSettings = DEFAULT_SETTINGS) -> list[int]:
    """Return the token ids of a prompt as a chat client would send it; the bare prompt's if they are too many for a probe."""
    bare: list[int] = tokenizer(prompt)["input_ids"]
    if not tokenizer.chat_template:
        return bare
    try:
        templated = encode_chat(tokenizer, [{"role": "user", "content": prompt}], settings=settings)
    except ChatTemplateError:
        return bare
    return templated if len(templated) <= MAX_PROMPT_TOKENS else bare


def renders_the_same(tokenizer: Any, prompt: str, settings: ChatSettings = DEFAULT_SETTINGS) -> bool:
    """Return whether the first probe starts with a rendered chat that every server renders alike, on any day."""
    if not tokenizer.chat_template or CLOCK in str(tokenizer.chat_template):
        return False
    return bool(prompt_ids(tokenizer, prompt, settings) != tokenizer(prompt)["input_ids"])


def _probe(model: Any, ids: list[int], prompt_tokens: int) -> Probe:
    tuned = score(model, ids, prompt_tokens)
    with model.disable_adapter():
        base = score(model, ids, prompt_tokens)
    return Probe(token_ids=ids, prompt_tokens=prompt_tokens, tuned=tuned, base=base)


def _continue_greedily(model: Any, prompt: list[int]) -> list[int]:
    """Continue greedily; a stop token does not end the continuation, so that every probe has the same weight."""
    import torch

    ids = torch.tensor([prompt], device=model.device)
    cache = None
    continuation: list[int] = []
    with torch.inference_mode():
        for _ in range(CONTINUATION_TOKENS):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            ids = output.logits[:, -1:].argmax(dim=-1)
            continuation.append(int(ids))
    return continuation


def score(model: Any, token_ids: list[int], prompt_tokens: int) -> list[float]:
    """Return the log-probability (nats) of each token after the prompt."""
    import torch

    ids = torch.tensor([token_ids], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, prompt_tokens - 1 : -1]
        scores = logits.float().log_softmax(dim=-1).gather(1, ids[0, prompt_tokens:, None])[:, 0]
    return [round(float(value), DIGITS) for value in scores]
