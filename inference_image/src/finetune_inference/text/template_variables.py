"""The variables that a chat template reads, so that a request cannot set others without effect."""

import functools
import re
from typing import Any, Final

RENDERING_ARGUMENTS: Final = frozenset(
    {
        "add_generation_prompt",
        "bos_token",
        "chat_template",
        "continue_final_message",
        "conversation",
        "eos_token",
        "max_length",
        "messages",
        "pad_token",
        "padding",
        "raise_exception",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "strftime_now",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
        "unk_token",
    }
)
"""Names that the rendering itself sets."""

GENERATION_TAG: Final = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def template_variables(tokenizer: Any) -> frozenset[str] | None:
    """Return the names that the tokenizer's chat templates read; None if they cannot be parsed."""
    template = tokenizer.chat_template
    texts = tuple(template.values()) if isinstance(template, dict) else (template,)
    return _variables(texts)


@functools.lru_cache(maxsize=64)
def _variables(texts: tuple[str, ...]) -> frozenset[str] | None:
    from jinja2 import Environment, TemplateError, meta
    from jinja2.ext import loopcontrols

    # transformers marks answers by a tag that jinja2 does not know.
    plain = [GENERATION_TAG.sub("", text) for text in texts]
    environment = Environment(extensions=[loopcontrols], autoescape=False)  # noqa: S701 - parsed, never rendered
    try:
        return frozenset().union(*(meta.find_undeclared_variables(environment.parse(text)) for text in plain))
    except TemplateError:
        return None
