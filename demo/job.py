"""The demonstration's FinetuneJob: created anew each time, followed to its end, and explained if it fails."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from demo.cluster import JOB_NAMESPACE, Target
from demo.narrate import Line, note
from demo.shell import REPOSITORY, DemoError

SAMPLES = REPOSITORY / "crds" / "samples"
SAMPLE = SAMPLES / "demo.yaml"
DATA = SAMPLES / "data"
NAME = "support-tickets"
POLL_SECONDS = 2.0
PATIENCE_SECONDS = 900.0
"""Longest duration of the whole job, in seconds, before the demonstration fails."""


@dataclass(frozen=True)
class Finished:
    """A job whose adapter is verified."""

    uid: str
    service: str
    adapter: str
    base: str
    """The value of `model` in requests to the base model."""
    train_loss: str


def submit(target: Target) -> None:
    """Delete the job of an earlier run with everything it owns, then create ConfigMap and job."""
    if target.shell.get("finetunejob", NAME, f"--namespace={JOB_NAMESPACE}"):
        note("deleting the job of an earlier run, with its endpoint")
        target.shell.kubectl("delete", "finetunejob", NAME, f"--namespace={JOB_NAMESPACE}", "--timeout=90s")
        _wait_until_gone(target)
    data = {part: (DATA / f"support-tickets.{part}").read_text() for part in ("train.jsonl", "heldout.jsonl")}
    metadata = {"name": NAME, "namespace": JOB_NAMESPACE}
    target.shell.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    note(f"ConfigMap {NAME}: {', '.join(f'{k} ({len(v.splitlines())} rows)' for k, v in data.items())}")
    job = yaml.safe_load(SAMPLE.read_text())
    job["spec"]["model"]["source"] = target.model_source
    job["metadata"]["namespace"] = JOB_NAMESPACE
    target.shell.apply(job)
    note(f"kubectl apply --namespace {JOB_NAMESPACE} --filename {SAMPLE.relative_to(REPOSITORY)}")


def follow(target: Target) -> Finished:
    """Show phase, step, loss and time left until the adapter is verified. Raises DemoError if it will never be."""
    line = Line()
    try:
        for job in _observe(target):
            status = job.get("status", {})
            line.show(status.get("phase", ""), _progress(status))
            if _is_true(status, "Failed") or status.get("phase") == "Cancelled":
                break
            if _is_true(status, "Succeeded") and _is_true(status, "AdapterVerified"):
                return _finished(target, job)
    finally:
        line.close()
    raise DemoError(diagnose(target), "`kubectl describe finetunejob` and the lines above say what to change.")


def finished_job(target: Target) -> Finished:
    """Return the job that an earlier run left. Raises DemoError if there is none."""
    job = target.shell.get("finetunejob", NAME, f"--namespace={JOB_NAMESPACE}") or {}
    if not _is_true(job.get("status", {}), "AdapterVerified"):
        raise DemoError(f"there is no FinetuneJob {JOB_NAMESPACE}/{NAME} with a verified adapter", "Run `make demo`.")
    return _finished(target, job)


def diagnose(target: Target) -> str:
    """Collect what explains why the job is not done: status, events, and the end of its pods' logs."""
    job = target.shell.get("finetunejob", NAME, f"--namespace={JOB_NAMESPACE}") or {}
    status = job.get("status", {})
    parts = [f"FinetuneJob {JOB_NAMESPACE}/{NAME} is {status.get('phase', 'not started')}: {status.get('message', '')}"]
    if failure := status.get("lastFailure"):
        parts.append(json.dumps(failure, indent=2))
    in_namespace = f"--namespace={JOB_NAMESPACE}"
    events = target.shell.kubectl("get", "events", in_namespace, "--sort-by=.lastTimestamp", check=False)
    parts.append("Last events:\n" + "\n".join(events.splitlines()[-12:]))
    parts.append("Pods:\n" + target.shell.kubectl("get", "pods", in_namespace, check=False).rstrip())
    for app in ("finetune-trainer", "finetune-inference"):
        selector = f"--selector=app.kubernetes.io/name={app}"
        log = target.shell.kubectl("logs", in_namespace, selector, "--tail=15", "--prefix", check=False).rstrip()
        if log:
            parts.append(f"End of the log of {app}:\n{log}")
    return "\n\n".join(parts)


def _observe(target: Target) -> Iterator[dict[str, Any]]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        job = target.shell.get("finetunejob", NAME, f"--namespace={JOB_NAMESPACE}")
        if job is None:
            raise DemoError(f"FinetuneJob {JOB_NAMESPACE}/{NAME} was deleted by somebody else")
        yield job
        time.sleep(POLL_SECONDS)


def _progress(status: dict[str, Any]) -> str:
    phase = status.get("phase", "waiting for the operator")
    progress = status.get("progress") or {}
    if phase != "Running" or not progress.get("totalSteps"):
        return f"{phase:12} {status.get('message', '')}".rstrip()
    words = [f"step {progress.get('step', 0)}/{progress['totalSteps']}", f"{progress.get('percent', 0)} %"]
    if progress.get("loss"):
        words.append(f"loss {progress['loss']}")
    if progress.get("tokensPerSecond"):
        words.append(f"{progress['tokensPerSecond']} tokens/s")
    if progress.get("eta"):
        words.append(f"{progress['eta']} left")
    return f"{phase:12} {', '.join(words)}"


def _is_true(status: dict[str, Any], condition: str) -> bool:
    return any(c["type"] == condition and c["status"] == "True" for c in status.get("conditions", []))


def _finished(target: Target, job: dict[str, Any]) -> Finished:
    status = job["status"]
    service = status["serving"]["name"]
    endpoint = target.shell.get("inferenceservices.finetune.dev", service, f"--namespace={JOB_NAMESPACE}") or {}
    metrics = {metric["name"]: metric["value"] for metric in status.get("metrics", [])}
    return Finished(
        uid=job["metadata"]["uid"],
        service=service,
        adapter=status["adapter"]["name"],
        base=endpoint["status"]["modelName"],
        train_loss=metrics.get("train_loss", "?"),
    )


def _wait_until_gone(target: Target) -> None:
    """Children go after their owner; a new job of the same name should find none of them."""
    children = f"--selector=finetune.dev/job-name={NAME}"
    target.shell.kubectl(
        "wait", "--for=delete", "pods", children, f"--namespace={JOB_NAMESPACE}", "--timeout=90s", check=False
    )
