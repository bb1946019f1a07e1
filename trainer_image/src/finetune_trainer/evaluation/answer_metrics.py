"""Metrics of answers: functions of what the tuned model generates for held-out rows and of what it should have said.

Each is an entry point of the group `finetune_trainer.metrics`, ours and those of any package that is installed beside this one:

    [project.entry-points."finetune_trainer.metrics"]
    mentions_team = "our_metrics:mentions_team"

    def mentions_team(predictions: list[str], references: list[str]) -> float:
        return sum("[" in prediction for prediction in predictions) / len(predictions)

A job names those it wants in `evaluation.metrics`. Both lists have one text per row, without special tokens.
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
"""The one metric that needs no generated answers: `evaluation.HeldOutRows` reads it off the logits of the loss."""
TRIAL: Final = (["It is on its way.", ""], ["It has left.", "It is on its way."])
"""Predictions and references that a metric has to be able to compare."""
UNSPACED: Final = r"\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{lb=SA}"
"""Scripts that put no spaces between words: Chinese, Japanese, and those of South East Asia (Thai, Lao, Khmer, Burmese)."""
WORD: Final = regex.compile(rf"[{UNSPACED}&&\w]\p{{M}}*|[\w--[{UNSPACED}]]+", regex.V1)
"""A word, or a character with its marks where no space says how far a word goes.

By characters these are compared in multilingual relatives of SQuAD, too: MLQA (arXiv 1910.07475) does so with Chinese, MKQA
(arXiv 2007.15207) with Japanese, Thai and Khmer as well. `re` would also cut a Hindi word at its vowels, which are marks.
"""


@dataclass(frozen=True)
class Measured:
    """What metrics say of a finished training."""

    values: dict[str, float] = field(default_factory=dict)
    """By name."""
    problems: dict[str, str] = field(default_factory=dict)
    """Why a metric that was asked for has no value, by its name. The adapter is trained, and is not to be lost for it."""


def generated_metrics(config: TrainingConfig) -> list[str]:
    """Names of the metrics asked for that answers have to be generated for, in the order of the configuration."""
    return [name for name in dict.fromkeys(config.evaluation_settings.metrics) if name != EXACT_MATCH]


def known_metrics() -> list[str]:
    """Names that may be asked for here."""
    return sorted({EXACT_MATCH, *entry_points(group=GROUP).names})


def load_metric(name: str) -> Metric:
    """The function of a metric. Raises TrainingError (SpecInvalid) if there is none or more than one, or it cannot be imported."""
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"evaluation.metrics names {name}, which is not installed here; known are {', '.join(known_metrics())}. Correct the "
            f"name, or use a trainer image with a package that has an entry point {name} in the group {GROUP}.",
        )
    if len(found) > 1:
        brought = " and ".join(sorted(f"{_package(point)} ({point.value})" for point in found))
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"evaluation.metrics names {name}, which is brought by more than one package: {brought}. Use a trainer image with only "
            "one of them, or give the metric of yours another name.",
        )
    try:
        metric: Metric = found[0].load()
    except Exception as error:  # whatever a package's import raises
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"evaluation.metrics names {name}, whose function {found[0].value} cannot be imported ({one_line(error)}); mend the "
            "package that brings it, or leave the metric out.",
        ) from error
    return metric


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "a package without a name"


def check_metrics(config: TrainingConfig) -> None:
    """Try each metric that is asked for. Raises TrainingError (SpecInvalid) for the first one that cannot be measured."""
    for name in generated_metrics(config):
        if config.dpo:
            raise TrainingError(
                Reason.SPEC_INVALID,
                f"evaluation.metrics names {name}, which compares generated answers with one wanted answer; the pairs of "
                "method.dpo have two, and are measured by reward_accuracy and reward_margin. Leave the metric out.",
            )
        problem = _problem(load_metric(name))
        if problem:
            raise TrainingError(
                Reason.SPEC_INVALID,
                f"evaluation.metrics names {name}, which {problem} for a trial of two texts; expected a finite number. Mend the "
                "package that brings it, or leave the metric out.",
            )


def measure(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[str], between: Callable[[], None]
) -> Measured:
    """What each metric says, or what is wrong with it, which is logged; `between` is called before each, and may raise to stop."""
    measured = Measured()
    for name in names:
        between()
        try:
            value = float(load_metric(name)(list(predictions), list(references)))
            problem = None if math.isfinite(value) else f"it is {value}"
        except Exception as error:  # whatever somebody's function raises
            problem = _raised(error)
        if problem is None:
            measured.values[name] = value
        else:
            measured.problems[name] = problem
            logger.warning("metric is left out name=%s problem=%s", name, problem)
    return measured


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
    """Share of answers that are the wanted one, but for case and white space.

    Unlike exact_match it is of what is really generated, and cares for no token that cannot be read.
    """
    pairs = zip(predictions, references, strict=True)
    return _mean([float(_plain(prediction) == _plain(reference)) for prediction, reference in pairs])


def token_f1(predictions: list[str], references: list[str]) -> float:
    """Mean harmonic mean of precision and recall of the words, in any order (as in SQuAD, arXiv 1606.05250, section 6)."""

    def f1(prediction: list[str], reference: list[str]) -> float:
        common = sum((Counter(prediction) & Counter(reference)).values())
        return _harmonic(common, len(prediction), len(reference))

    return _mean([f1(_words(p), _words(r)) for p, r in zip(predictions, references, strict=True)])


def rouge_l(predictions: list[str], references: list[str]) -> float:
    """Mean harmonic mean of precision and recall of the longest common subsequence of words (ROUGE-L; Lin 2004)."""

    def rouge(prediction: list[str], reference: list[str]) -> float:
        return _harmonic(_common_subsequence(prediction, reference), len(prediction), len(reference))

    return _mean([rouge(_words(p), _words(r)) for p, r in zip(predictions, references, strict=True)])


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _words(text: str) -> list[str]:
    words: list[str] = WORD.findall(text.casefold())
    return words


def _harmonic(common: int, predicted: int, wanted: int) -> float:
    """Of two texts without words each is all that the other wants."""
    return 2 * common / (predicted + wanted) if predicted + wanted else 1.0


def _common_subsequence(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence, a row of its table at a time in the bits of a number (Hyyrö 2004).

    A bit of `level` is 0 where the length is one more than before that word of `other`.
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
