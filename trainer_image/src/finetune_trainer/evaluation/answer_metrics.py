"""Metrics of answers: functions of the tuned model's predictions for held-out rows and of their references.

Each is an entry point of the group `finetune_trainer.metrics`, of this package or of any other installed one:

    [project.entry-points."finetune_trainer.metrics"]
    mentions_team = "our_metrics:mentions_team"

    def mentions_team(predictions: list[str], references: list[str]) -> float:
        return sum("[" in prediction for prediction in predictions) / len(predictions)

A job names metrics in `evaluation.metrics`. Both lists hold one text per row, without special tokens.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Final

import regex

from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_trainer.errors import TrainingError, one_line

logger = logging.getLogger(__name__)

Metric = Callable[[list[str], list[str]], float]

GROUP: Final = "finetune_trainer.metrics"
EXACT_MATCH: Final = "exact_match"
"""The one metric that needs no generated answers: `evaluation.HeldOutRows` computes it from the logits of the loss."""
TRIAL: Final = (["It is on its way.", ""], ["It has left.", "It is on its way."])
"""Predictions and references that every metric is tried on before training."""
UNSPACED: Final = r"\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{lb=SA}"
"""Scripts without spaces between words: Chinese, Japanese, and those of South East Asia (Thai, Lao, Khmer, Burmese)."""
WORD: Final = regex.compile(rf"[{UNSPACED}&&\w]\p{{M}}*|[\w--[{UNSPACED}]]+", regex.V1)
"""A word, or, in scripts without spaces, a character with its marks.

Multilingual relatives of SQuAD compare such scripts by characters too: MLQA (arXiv 1910.07475) Chinese, MKQA (arXiv
2007.15207) also Japanese, Thai and Khmer. `re` would cut a Hindi word at its vowels, which are marks.
"""


@dataclass(frozen=True)
class MetricResults:
    """Metrics of a finished training."""

    values: dict[str, float] = field(default_factory=dict)
    """Value by metric."""
    problems: dict[str, str] = field(default_factory=dict)
    """Problem by requested metric without a value. Such a problem never costs the adapter, which is trained."""


def generated_metrics(config: TrainingConfig) -> list[str]:
    """Return the configured metrics that need generated answers, in the order of the configuration."""
    return [name for name in dict.fromkeys(config.evaluation_settings.metrics) if name != EXACT_MATCH]


def known_metrics() -> list[str]:
    """Return the names of all installed metrics, sorted."""
    return sorted({EXACT_MATCH, *entry_points(group=GROUP).names})


def load_metric(name: str) -> Metric:
    """Load the function of a metric.

    Raises TrainingError (SpecInvalid) if no package or more than one has it, or if it cannot be imported.
    """
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"evaluation.metrics names {name}, which is not installed; installed are {', '.join(known_metrics())}. Correct the "
            f"name, or use a trainer image with a package that has the entry point {name} in the group {GROUP}.",
        )
    if len(found) > 1:
        providers = " and ".join(sorted(f"{_package(point)} ({point.value})" for point in found))
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"evaluation.metrics names {name}, which more than one package provides: {providers}. Use a trainer image with only "
            "one of them, or rename your metric.",
        )
    try:
        metric: Metric = found[0].load()
    except Exception as error:  # whatever a package's import raises
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"evaluation.metrics names {name}, whose function {found[0].value} cannot be imported ({one_line(error)}); fix the "
            "package that provides it, or remove the metric.",
        ) from error
    return metric


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "a package without a name"


def check_metrics(config: TrainingConfig) -> None:
    """Try each configured metric. Raises TrainingError (SpecInvalid) for the first one that fails."""
    for name in generated_metrics(config):
        if config.dpo:
            raise TrainingError(
                Reason.SPEC_INVALID,
                f"evaluation.metrics names {name}, which compares generated answers with one reference; the pairs of "
                "method.dpo have two, and are measured by reward_accuracy and reward_margin. Remove the metric.",
            )
        problem = _problem(load_metric(name))
        if problem:
            raise TrainingError(
                Reason.SPEC_INVALID,
                f"evaluation.metrics names {name}, which {problem} for a trial of two texts; expected a finite number. Fix the "
                "package that provides it, or remove the metric.",
            )


def compute_metrics(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[str], check_stop: Callable[[], None]
) -> MetricResults:
    """Compute each metric, or log its problem; `check_stop` is called before each, and may raise to stop."""
    results = MetricResults()
    for name in names:
        check_stop()
        try:
            value = float(load_metric(name)(list(predictions), list(references)))
            problem = None if math.isfinite(value) else f"it is {value}"
        except Exception as error:  # whatever somebody's function raises
            problem = _raised(error)
        if problem is None:
            results.values[name] = value
        else:
            results.problems[name] = problem
            logger.warning("metric left out name=%s problem=%s", name, problem)
    return results


def _problem(metric: Metric) -> str | None:
    predictions, references = TRIAL
    try:
        value = float(metric(list(predictions), list(references)))
    except Exception as error:  # whatever somebody's function raises
        return _raised(error)
    return None if math.isfinite(value) else f"returns {value}"


def _raised(error: Exception) -> str:
    return f"raises {type(error).__name__} ({one_line(error)})"


def answer_match(predictions: list[str], references: list[str]) -> float:
    """Return the share of answers that equal the reference, ignoring case and white space.

    Unlike exact_match, it compares generated text, without special tokens.
    """
    pairs = zip(predictions, references, strict=True)
    return _mean([float(_plain(prediction) == _plain(reference)) for prediction, reference in pairs])


def token_f1(predictions: list[str], references: list[str]) -> float:
    """Return the mean F1 of words in any order (as in SQuAD, arXiv 1606.05250, section 6)."""

    def f1(prediction: list[str], reference: list[str]) -> float:
        common = sum((Counter(prediction) & Counter(reference)).values())
        return _f1(common, len(prediction), len(reference))

    return _mean([f1(_words(p), _words(r)) for p, r in zip(predictions, references, strict=True)])


def rouge_l(predictions: list[str], references: list[str]) -> float:
    """Return the mean F1 of the longest common subsequence of words (ROUGE-L; Lin 2004)."""

    def rouge(prediction: list[str], reference: list[str]) -> float:
        return _f1(_common_subsequence(prediction, reference), len(prediction), len(reference))

    return _mean([rouge(_words(p), _words(r)) for p, r in zip(predictions, references, strict=True)])


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _words(text: str) -> list[str]:
    words: list[str] = WORD.findall(text.casefold())
    return words


def _f1(common: int, predicted: int, expected: int) -> float:
    """Return the F1 of word counts; F1 of two empty texts is 1."""
    return 2 * common / (predicted + expected) if predicted + expected else 1.0


def _common_subsequence(one: list[str], other: list[str]) -> int:
    """Return the length of the longest common subsequence, by bit-parallel rows of its table (Hyyrö 2004).

    A bit of `level` is 0 where that word of `other` increases the length by one.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << i
    everywhere = level = (1 << len(other)) - 1
    for word in one:
        matches = level & places.get(word, 0)
        level = (level + matches | level - matches) & everywhere
    return len(other) - level.bit_count()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
