"""Figures of every step for TensorBoard, MLflow and Weights & Biases, where a configuration asks for them.

A tracker gets all steps in their order, from a thread of its own, in which everything of its library happens: a server that
is slow, gone or refuses costs figures and nothing else. All attempts of a job are one run of the tracker. transformers has
callbacks for the same libraries; they call from the training thread, their errors end it, and each attempt would be a run.
"""

import contextlib
import importlib
import logging
import os
import queue
import socket
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from finetune_api.outcome import Outcome, Progress, Result
from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_api.v1alpha1 import MlflowTracking, Tracking, WandbTracking
from finetune_trainer.config import SourceSettings
from finetune_trainer.errors import TrainingError, one_line
from finetune_trainer.reporting.progress import Reporter
from finetune_trainer.sources.addresses import is_public

logger = logging.getLogger(__name__)

PACKAGES: Final = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "wandb": "wandb"}
"""Package by tracker, whose name is that of the module too; all of them are the extra `tracking` of finetune-trainer."""
MAX_WAITING: Final = 100_000
"""Steps that wait for a slow tracker, at most; later ones are left out."""
MAX_FAILURES: Final = 10
"""Failures in a row after which a tracker is left alone."""
CLOSE_TIMEOUT: Final = 15.0
"""Seconds that the end of a run waits for a tracker to take what is left."""
REQUEST_TIMEOUT: Final = 10
"""Seconds that a request to a tracker may take."""
RUN_TAG: Final = "finetune.run"
"""Tag of an MLflow run by which a later attempt finds it."""


class Tracker(ABC):
    """One run of a tracker, open. Everything may fail or take its time."""

    @abstractmethod
    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Keep the figures of a step."""

    @abstractmethod
    def finish(self, *, succeeded: bool) -> None:
        """Send what is left; an attempt that did not succeed may be gone on with."""


def check_trackers(config: TrainingConfig) -> None:
    """Raise TrainingError (SpecInvalid) if a library is not installed, or an address one that users may not name."""
    tracking = config.tracking or Tracking()
    for name, package in PACKAGES.items():
        if getattr(tracking, name) is None:
            continue
        try:
            # Now, as the first import takes seconds.
            importlib.import_module(name)
        except ImportError:
            raise TrainingError(
                Reason.SPEC_INVALID,
                f"tracking.{name} needs the Python package {package}, which is not installed here; remove tracking.{name}, or use "
                "a trainer image that has it (finetune-trainer[tracking])",
            ) from None
    if tracking.mlflow and not tracking.mlflow.uri.startswith("file:"):
        _check_address("tracking.mlflow.uri", tracking.mlflow.uri)
    if tracking.wandb and tracking.wandb.base_url:
        _check_address("tracking.wandb.baseUrl", tracking.wandb.base_url)


def _check_address(field: str, url: str) -> None:
    """What holds for downloads holds here; a host that is not known is one that takes no figures, and no more."""
    host = urlsplit(url).hostname or ""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return
    if not SourceSettings().allow_private and (refused := [address for address in found if not is_public(address)]):
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"{field}: {host} has the address {refused[0]}, which is not public; let an administrator set "
            "workloads.allowPrivateSources of the chart (FINETUNE_ALLOW_PRIVATE_SOURCES of the trainer)",
        )


def tracking_reporters(config: TrainingConfig, run_id: str) -> list[Reporter]:
    """A reporter for each tracker of the configuration; `run_id` is the same for all attempts of a job."""
    wanted = config.tracking or Tracking()
    openers: dict[str, Callable[[], Tracker]] = {}
    if wanted.tensorboard:
        openers["tensorboard"] = partial(TensorBoardTracker, events_folder(config, run_id))
    if wanted.mlflow:
        openers["mlflow"] = partial(MlflowTracker, wanted.mlflow, config, run_id)
    if wanted.wandb:
        openers["wandb"] = partial(WandbTracker, wanted.wandb, config, run_id)
    return [TrackingReporter(name, opener) for name, opener in openers.items()]


class TrackingReporter:
    """Every step to one tracker, in a thread that opens the tracker at the first of them."""

    def __init__(self, name: str, open_tracker: Callable[[], Tracker]) -> None:
        self._name = name
        self._open = open_tracker
        self._news: queue.Queue[Progress | Outcome | None] = queue.Queue(MAX_WAITING)
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def report(self, progress: Progress) -> None:
        """Put the figures in the queue; a full one is that of a tracker that takes none."""
        with contextlib.suppress(queue.Full):
            self._news.put_nowait(progress)

    def close(self, outcome: Outcome | None = None) -> None:
        """Let the thread send what is left, if that is quick."""
        with contextlib.suppress(queue.Full):
            self._news.put_nowait(outcome)
        self._thread.join(CLOSE_TIMEOUT)
        if self._thread.is_alive():
            logger.warning("%s did not take all figures in time", self._name)

    def _run(self) -> None:
        tracker: Tracker | None = None
        while self._failures < MAX_FAILURES:
            news = self._news.get()
            if tracker is None and isinstance(news, Progress):
                tracker = self._try(self._open)
            if tracker is not None:
                self._try(partial(_pass_on, tracker, news))
            if not isinstance(news, Progress):
                return
        logger.warning("%s gets no more figures after %d failures", self._name, self._failures)

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            result = action()
        except Exception as error:
            # Whatever is wrong with a tracker, training goes on; its figures are in the log as well.
            if self._failures == 0:
                logger.warning("%s takes no figures: %s: %s", self._name, type(error).__name__, one_line(error))
            self._failures += 1
            return None
        self._failures = 0
        return result


def _pass_on(tracker: Tracker, news: Progress | Outcome | None) -> None:
    if isinstance(news, Progress):
        tracker.log(figures_of(news), news.step)
        return
    succeeded = news is not None and news.result is Result.SUCCEEDED
    if news is not None and succeeded:
        tracker.log({f"final/{name}": value for name, value in news.metrics.items()}, news.step)
    tracker.finish(succeeded=succeeded)


def figures_of(progress: Progress) -> dict[str, float]:
    """What is kept of a step, by the names that transformers' callbacks give it."""
    figures: dict[str, float | None] = {
        "train/loss": progress.loss,
        "train/learning_rate": progress.learning_rate,
        "train/epoch": progress.epoch,
        "train/tokens_per_second": progress.tokens_per_second,
        "train/peak_memory_bytes": progress.peak_memory_bytes,
    }
    if progress.evaluation_step == progress.step:
        figures |= {f"eval/{name.removeprefix('eval_')}": value for name, value in progress.evaluation.items()}
    return {name: value for name, value in figures.items() if value is not None}


def parameters_of(config: TrainingConfig) -> dict[str, Any]:
    """What the run was asked for, flat: no rows, and nothing that differs from attempt to attempt."""
    document = config.to_dict()
    wanted: dict[str, Any] = {n: document[n] for n in ("hyperparameters", "lora", "dpo") if n in document}
    shown = {"model": config.model.source or config.model.path, "dataset": config.dataset.source or config.dataset.path}
    return {**_flat(wanted), **{name: value for name, value in shown.items() if value}}


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _run_name(config: TrainingConfig) -> str:
    return config.job.name if config.job else config.output.adapter_name


class TensorBoardTracker(Tracker):
    """Event files on the output volume."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            # Steps that an interrupted attempt trained beyond its last checkpoint are trained again: the old ones go.
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, *, succeeded: bool) -> None:
        """See `Tracker`."""
        if self._writer is not None:
            self._writer.close()


def events_folder(config: TrainingConfig, run_id: str) -> Path:
    """Where event files go: beside the adapters of the same name, so that runs can be compared, and inside of none.

    An adapter's folder is whole from its first moment; event files grow.
    """
    return Path(config.output.directory) / config.output.adapter_name / "tensorboard" / run_id


class MlflowTracker(Tracker):
    """A run of an MLflow server; credentials come from MLflow's own environment variables."""

    def __init__(self, settings: MlflowTracking, config: TrainingConfig, run_id: str) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        # MLflow itself tries a request for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_TIMEOUT))
        self._client = MlflowClient(tracking_uri=settings.uri)
        known = self._client.get_experiment_by_name(settings.experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(settings.experiment)
        found = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        made = self._client.create_run(experiment, run_name=_run_name(config), tags={RUN_TAG: run_id})
        self._run = made.info.run_id
        self._client.log_batch(self._run, params=[Param(name, str(v)) for name, v in parameters_of(config).items()])

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in figures.items()])

    def finish(self, *, succeeded: bool) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._run, "FINISHED" if succeeded else "FAILED")


class WandbTracker(Tracker):
    """A run of Weights & Biases; the API key comes from its own environment variable."""

    def __init__(self, settings: WandbTracking, config: TrainingConfig, run_id: str) -> None:
        import wandb

        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=_run_name(config),
            id=run_id,
            resume="allow",
            config=parameters_of(config),
            dir=tempfile.gettempdir(),
            settings=wandb.Settings(
                **({"base_url": settings.base_url} if settings.base_url else {}),
                init_timeout=REQUEST_TIMEOUT,
                finish_timeout=REQUEST_TIMEOUT,
                silent=True,
                # Figures are what was asked for: nothing about the machine, its files or what is printed.
                console="off",
                disable_code=True,
                x_disable_machine_info=True,
            ),
        )

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._run.log(dict(figures), step=step)

    def finish(self, *, succeeded: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=0 if succeeded else 1)
