"""From rows in a file to token ids and labels, in steps that each return a value.

`reading` parses a file or inline text, `formats` detects the format and turns rows into examples or reports the wrong
ones, `tokenizing` renders examples with the model's chat template and marks which tokens carry loss. The first two need
neither torch nor a model, so a bad dataset is refused within a second.
"""

from finetune_trainer.data.cache import MIN_CHARACTERS, TokenCache, cache_key
from finetune_trainer.data.formats import read_examples, require_format, split_rows
from finetune_trainer.data.pairs import answers_as_examples, require_whole_pairs
from finetune_trainer.data.reading import digest_rows
from finetune_trainer.data.rows import Example, Format
from finetune_trainer.data.token_rows import IGNORED, Tokenized, TokenRow, TokenRows
from finetune_trainer.data.tokenizing import characters, tokenize

__all__ = [
    "IGNORED",
    "MIN_CHARACTERS",
    "Example",
    "Format",
    "TokenCache",
    "TokenRow",
    "TokenRows",
    "Tokenized",
    "answers_as_examples",
    "cache_key",
    "characters",
    "digest_rows",
    "read_examples",
    "require_format",
    "require_whole_pairs",
    "split_rows",
    "tokenize",
]
