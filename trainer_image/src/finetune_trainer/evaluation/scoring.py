"""Scores of generated answers to held-out rows, measured after training."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune_api.training import TrainingConfig
from finetune_trainer.dataset import PreparedDataset
from finetune_trainer.errors import TrainingError
from finetune_trainer.evaluation.answer_metrics import MetricResults, compute_metrics, generated_metrics
from finetune_trainer.evaluation.prompts import find_prompts
from finetune_trainer.model.loaded import BaseModel

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)


def score_predictions(
    config: TrainingConfig,
    model: "PeftModel",
    base: BaseModel,
    dataset: PreparedDataset,
    check_stop: Callable[[], None],
) -> MetricResults:
    """Compute the configured metrics on generated answers to held-out rows; empty without metrics or rows.

    Only an error from `check_stop` is raised. Any other error costs these metrics, not the adapter, which is trained.
    """
    names = generated_metrics(config)
    if not names or dataset.evaluation is None:
        return MetricResults()
    from finetune_trainer.evaluation.predictions import describe_failure, generate_predictions
    from finetune_trainer.memory.out_of_memory import release_memory

    settings, started = config.evaluation_settings, time.monotonic()
    prompts = find_prompts(dataset.evaluation.rows, settings.generated_rows)
    try:
        predictions, references = generate_predictions(
            model, base, prompts, settings.max_new_tokens, check_stop, dataset.end_tokens
        )
    except TrainingError:  # a stop
        raise
    except Exception as error:  # whatever a model's own code raises
        problem = describe_failure(error)
        logger.warning("metrics left out names=%s problem=%s", ",".join(names), problem, exc_info=True)
    else:
        results = compute_metrics(names, predictions, references, check_stop)
        values = {name: round(value, 6) for name, value in results.values.items()}
        figures = " ".join(f"{name}={value:.4f}" for name, value in values.items())
        logger.info("answers scored rows=%d %s seconds=%.1f", len(predictions), figures, time.monotonic() - started)
        return MetricResults(values, results.problems)
    release_memory()
    return MetricResults(problems=dict.fromkeys(names, problem))
