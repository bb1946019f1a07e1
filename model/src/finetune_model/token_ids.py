"""Token ids judged by those that are used: tokenizers have more tokens than many models have embeddings.

Such a token is no fault as long as no row and no request has it (gemma-3-1b is released that way). Trainer and server ask the
same function, so that what can be trained can be requested.
"""

from collections.abc import Iterable
from typing import Any, Final

NAMED: Final = 3
"""Most tokens in a message; the others are counted."""


def embedding_rows(config: Any) -> int | None:
    """Return the number of token ids that a model has embeddings for; None if its configuration does not say."""
    rows: int | None = getattr(config.get_text_config(), "vocab_size", None)
    return rows


def tokens_without_embedding(ids: Iterable[int], rows: int, tokenizer: Any) -> str | None:
    """Return the names and ids of tokens for which a model with `rows` embeddings has none; None if it has all."""
    unknown = sorted({int(i) for i in ids if i >= rows})
    if not unknown:
        return None
    # A request may have any number for a token id.
    names = [tokenizer.convert_ids_to_tokens(i) if i < len(tokenizer) else None for i in unknown[:NAMED]]
    shown = [f"{name or 'unknown'} (id {i})" for name, i in zip(names, unknown, strict=False)]
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    return f"{', '.join(shown)}{more}"
