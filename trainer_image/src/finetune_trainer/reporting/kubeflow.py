"""Progress for a Kubeflow TrainJob: the HTTP protocol of its KEP-2779, spoken when its environment variables are there.

A TrainJob whose image is this trainer shows percent, remaining seconds and metrics in its own status. transformers has a
callback that does the same, from the training thread: a control plane that does not answer would hold up each step.
"""

import functools
import json
import os
import ssl
import time
import urllib.request
from pathlib import Path
from typing import Any, Final

from finetune_api.outcome import Outcome, Progress, Result
from finetune_trainer.reporting.progress import LatestReporter

URL_ENV: Final = "KUBEFLOW_TRAINER_SERVER_URL"
"""Environment variable with the URL of the TrainJob's status; unset or empty means: no TrainJob."""
CA_ENV: Final = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
"""Environment variable with the path of the CA certificate."""
TOKEN_ENV: Final = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105 - a name
"""Environment variable with the path of the pod's token, which the kubelet renews."""
DISABLED_ENV: Final = "DISABLE_KUBEFLOW_INTEGRATION"
"""Environment variable that turns this off if it is `true`; transformers has it too."""
INTERVAL: Final = 5.0
"""Seconds between two reports, at least; Kubeflow's own clients keep the same."""
TIMEOUT: Final = 5.0
"""Seconds that a report may take."""


def kubeflow_reporters() -> "list[KubeflowReporter]":
    """What reports to the TrainJob that this process belongs to; none if it belongs to none."""
    url = os.environ.get(URL_ENV)
    if not url or os.environ.get(DISABLED_ENV, "").lower() == "true":
        return []
    return [KubeflowReporter(url, token_file=os.environ.get(TOKEN_ENV), ca_file=os.environ.get(CA_ENV))]


class KubeflowReporter(LatestReporter):
    """Progress as the trainerStatus of a TrainJob."""

    name = "progress of the TrainJob"

    def __init__(self, url: str, *, token_file: str | None, ca_file: str | None, interval: float = INTERVAL) -> None:
        self._url = url
        self._token_file = token_file
        self._ca_file = ca_file
        super().__init__(interval)

    def send(self, news: Progress | Outcome) -> None:
        """Post a status. How a run failed is not part of the protocol: the TrainJob sees the pod's exit code."""
        if isinstance(news, Outcome) and news.result is not Result.SUCCEEDED:
            return
        body = json.dumps({"trainerStatus": trainer_status(news)}).encode()
        headers = {"Content-Type": "application/json"}
        if self._token_file:
            headers["Authorization"] = f"Bearer {Path(self._token_file).read_text(encoding='utf-8').strip()}"
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")  # noqa: S310 - not the user's
        with self._opener.open(request, timeout=TIMEOUT):
            pass

    @functools.cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        context = ssl.create_default_context(cafile=self._ca_file)
        return urllib.request.build_opener(_NoRedirect(), urllib.request.HTTPSHandler(context=context))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the token elsewhere; without one, it is an error like any other."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        """Follow none."""


def trainer_status(news: Progress | Outcome) -> dict[str, Any]:
    """The protocol's TrainerStatus: percent up to 99 while training runs, and 100 once the adapter is committed."""
    if isinstance(news, Outcome):
        percent, remaining, observed = 100, 0, time.time()
        metrics: dict[str, Any] = {**news.metrics, "current_step": news.step}
    else:
        percent = min(99, 100 * news.step // max(news.total_steps, 1))
        remaining, observed = int(max(0, news.eta_seconds or 0)), news.timestamp
        metrics = {
            "loss": news.loss,
            "learning_rate": news.learning_rate,
            "tokens_per_second": news.tokens_per_second,
            "peak_memory_bytes": news.peak_memory_bytes,
            **news.evaluation,
            "current_step": news.step,
            "total_steps": news.total_steps,
            "current_epoch": news.epoch,
        }
    return {
        "progressPercentage": percent,
        "estimatedRemainingSeconds": remaining,
        "metrics": [{"name": name, "value": f"{value:.10g}"} for name, value in metrics.items() if value is not None],
        "lastUpdatedTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(observed)),
    }
