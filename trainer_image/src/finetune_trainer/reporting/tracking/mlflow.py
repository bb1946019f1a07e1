"""MLflow: a run on an MLflow server."""

import os
import time
from collections.abc import Mapping
from typing import Final

from finetune_api.training import TrainingConfig
from finetune_api.v1alpha1 import MlflowTracking
from finetune_trainer.reporting.tracking.tracker import REQUEST_TIMEOUT, Tracker, parameters_of, run_name

RUN_TAG: Final = "finetune.run"
"""Tag of a run by which a later attempt finds it."""


class MlflowTracker(Tracker):
    """A run of an MLflow server; credentials come from MLflow's own environment variables."""

    def __init__(self, settings: MlflowTracking, config: TrainingConfig, run_id: str) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        # By default MLflow retries a request for minutes.
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
        created = self._client.create_run(experiment, run_name=run_name(config), tags={RUN_TAG: run_id})
        self._run = created.info.run_id
        self._client.log_batch(self._run, params=[Param(name, str(v)) for name, v in parameters_of(config).items()])

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send the figures of a step; see `Tracker`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in figures.items()])

    def finish(self, *, succeeded: bool) -> None:
        """Set the run's status; see `Tracker`."""
        self._client.set_terminated(self._run, "FINISHED" if succeeded else "FAILED")
