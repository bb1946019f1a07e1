"""Progress for a Kubeflow TrainJob: the HTTP protocol of KEP-2779, used if its environment variables are set.

A TrainJob with this trainer's image shows percent, remaining seconds and metrics in its status. transformers has a callback
for the same protocol, but it sends from the training thread: a control plane that does not answer would block each step.
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
"""Environment variable with the URL of the TrainJob's status; unset or empty without a TrainJob."""
CA_ENV: Final = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
"""Environment variable with the path of the CA certificate."""
TOKEN_ENV: Final = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105 - a name
"""Environment variable with the path of the pod's token, which the kubelet reupdate."""
DISABLED_ENV: Final = "DISABLE_KUBEFLOW_INTEGRATION"
"""Environment variable that disables these reports if it is `true`; transformers reads it too."""
INTERVAL: Final = 5.0
"""Minimum seconds between two reports, as in Kubeflow's own clients."""
TIMEOUT: Final = 5.0
"""Seconds that a report may take."""


def kubeflow_reporters() -> "list[KubeflowReporter]":
    """Create the reporter of the TrainJob that this process belongs to; an empty list without one."""
    url = os.environ.get(URL_ENV)
    if not url or os.environ.get(DISABLED_ENV, "").lower() == "true":
        return []
    return [KubeflowReporter(url, token_file=os.environ.get(TOKEN_ENV), ca_file=os.environ.get(CA_ENV))]


class KubeflowReporter(LatestReporter):
    """Reports progress as the trainerStatus of a TrainJob."""

    name = "progress of the TrainJob"

    def __init__(self, url: str, *, token_file: str | None, ca_file: str | None, interval: float = INTERVAL) -> None:
        self._url = url
        self._token_file = token_file
        self._ca_file = ca_file
        super().__init__(interval)

    def send(self, update: Progress | Outcome) -> None:
        """Post a status; nothing for a failed run, because the protocol has no failure and the TrainJob sees the exit code."""
        if isinstance(update, Outcome) and update.result is not Result.SUCCEEDED:
            return
        body = json.dumps({"trainerStatus": trainer_status(update)}).encode()
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
    """Turns redirects into errors, because a redirect would send the token elsewhere."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        """Refuse the redirect."""


def trainer_status(update: Progress | Outcome) -> dict[str, Any]:
    """Build the protocol's TrainerStatus: up to 99 percent while training runs, 100 once the adapter is committed."""
    if isinstance(update, Outcome):
        percent, remaining, observed = 100, 0, time.time()
        metrics: dict[str, Any] = {**update.metrics, "current_step": update.step}
    else:
        percent = min(99, 100 * update.step // max(update.total_steps, 1))
        remaining, observed = int(max(0, update.eta_seconds or 0)), update.timestamp
        metrics = {
            "loss": update.loss,
            "learning_rate": update.learning_rate,
            "tokens_per_second": update.tokens_per_second,
            "peak_memory_bytes": update.peak_memory_bytes,
            **update.evaluation,
            "current_step": update.step,
            "total_steps": update.total_steps,
            "current_epoch": update.epoch,
        }
    return {
        "progressPercentage": percent,
        "estimatedRemainingSeconds": remaining,
        "metrics": [{"name": name, "value": f"{value:.10g}"} for name, value in metrics.items() if value is not None],
        "lastUpdatedTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(observed)),
    }
