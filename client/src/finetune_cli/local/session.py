"""One run of a manifest: the operator's controller over local objects, until the job is verified, failed or interrupted."""

import asyncio
import logging
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from finetune_api.artifacts import RUN_REPORT_FILE
from finetune_api.conditions import ConditionType, Phase
from finetune_api.contract import FINETUNE_JOB_KIND, INFERENCE_SERVICE_KIND
from finetune_api.json_logs import JsonFormatter
from finetune_api.sources import parse_source
from finetune_api.v1alpha1 import FinetuneJob, FinetuneJobSpec, FinetuneJobStatus, InferenceService
from finetune_cli.errors import CommandError
from finetune_cli.local.chat import Endpoint, held_out_rows
from finetune_cli.local.container import SERVER_IMAGE, TRAINER_IMAGE
from finetune_cli.local.end import End, find_end
from finetune_cli.local.folders import Folders
from finetune_cli.local.manifest import Manifest, changed_fields, load_manifest
from finetune_cli.local.node import LocalNode
from finetune_cli.local.progress import FileProgress
from finetune_cli.local.store import Change, LocalCluster
from finetune_cli.local.terminal import Terminal
from finetune_cli.local.work_directory import (
    free_port,
    provide_claims,
    shown_path,
    work_directory_lock,
)
from finetune_operator.handlers.controller import Controller
from finetune_operator.handlers.keys import Key, keys_of
from finetune_operator.io.cluster import CONFIG_MAPS, FINETUNE_JOBS, INFERENCE_SERVICES
from finetune_operator.kubernetes_types import Raw
from finetune_operator.process.health import Health
from finetune_operator.reconcile.context import Context
from finetune_operator.reconcile.job.reconcile import reconcile_finetune_job
from finetune_operator.resources.serving import model_name
from finetune_operator.settings import Settings

MAX_ASKED: Final = 64
"""Held-out rows that are asked at most."""
ENDPOINT_CONDITIONS: Final = (
    ConditionType.SERVING_READY,
    ConditionType.ADAPTER_VERIFIED,
    ConditionType.SUCCEEDED,
    ConditionType.FAILED,
)
"""Conditions that say how far the endpoint of a published adapter is."""


class ExitCode(IntEnum):
    """Exit status of `finetune run`."""

    VERIFIED = 0
    """The adapter is verified, or published where the manifest has no `serve`."""
    FAILED = 1
    """The job failed; the last lines name reason and message."""
    REFUSED = 2
    """The manifest or an option cannot be used; nothing was started."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C or SIGTERM; the same command resumes."""


@dataclass(frozen=True)
class Options:
    """Arguments of `finetune run`."""

    manifest: Path
    work_dir: Path
    model: str | None = None
    data: Path | None = None
    questions: tuple[str, ...] = ()
    score: int = 0
    keep_serving: bool = False
    fresh: bool = False


async def apply_others(cluster: LocalCluster, manifest: Manifest) -> None:
    """Create the other objects of the file, or give those of an earlier run the content that the file has now."""
    for document in manifest.others:
        resource = CONFIG_MAPS if document["kind"] == "ConfigMap" else INFERENCE_SERVICES
        live = cluster.read(resource, manifest.namespace, document["metadata"]["name"])
        if live is not None and resource == CONFIG_MAPS:
            cluster.write(resource, {**live, "data": document.get("data") or {}})
        else:
            await cluster.apply(document)


class Session:
    """A work directory in use."""

    def __init__(self, options: Options, terminal: Terminal) -> None:
        self._options = options
        self._terminal = terminal
        self._folders = Folders(options.work_dir.resolve())
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()

    async def run(self) -> ExitCode:
        """Run the manifest to its end. Raises CommandError if it cannot be started."""
        model = self._options.model
        uri = model if model is not None and "://" in model else None
        manifest = load_manifest(self._options.manifest, self._options.data, uri)
        name = f"FinetuneJob {manifest.namespace}/{manifest.name}"
        for note in (f"{name} of {self._options.manifest}, in {shown_path(self._folders.root)}", *manifest.notes):
            self._terminal.note(note)
        with work_directory_lock(self._folders, self._terminal.note) as lock, free_port() as port:
            # Not before: until the lock is held there is nothing to save, and a signal ends the command.
            _install_signals(self._stop)
            provide_claims(self._folders, manifest.spec, model=model, data=self._options.data)
            cluster = LocalCluster(self._folders)
            node = LocalNode(cluster, self._folders, port, manifest.secrets, lock)
            node.recover()
            await self._submit(cluster, manifest)
            context = Context(cluster, FileProgress(cluster, self._folders), local_settings(port))
            end = None
            async with self._working(cluster, node, context, manifest):
                end = await self._until_settled(cluster, manifest)
                if end is not None and end.is_success and manifest.spec.serve is not None:
                    try:
                        await self._ask(cluster, manifest, port)
                    except CommandError as error:
                        # The adapter is verified all the same; where it lies is still to be said.
                        self._terminal.note(str(error))
            return self._conclude(cluster, manifest, end)

    async def _submit(self, cluster: LocalCluster, manifest: Manifest) -> None:
        """Apply the manifest: create the job, or find the one of an earlier run."""
        await apply_others(cluster, manifest)
        live = cluster.read(FINETUNE_JOBS, manifest.namespace, manifest.name)
        if live is not None and (why := self._why_anew(live, manifest)) is not None:
            self._terminal.note(why)
            cluster.remove_with_children(FINETUNE_JOBS, live)
            live = None
        if live is None:
            cluster.add(FINETUNE_JOBS, manifest.job)
            return
        status = live.get("status") or {}
        if not status.get("adapter"):
            self._terminal.note(f"Resuming the run that was interrupted ({status.get('phase') or Phase.PENDING}).")
        elif status.get("phase") == Phase.SUCCEEDED:
            self._terminal.note("The adapter is trained; it is served and verified again. --fresh trains anew.")
        else:
            self._terminal.note("The adapter is trained; what is left is to serve and verify it. --fresh trains anew.")
            live = _deploy_again(cluster, live)
        self._terminal.forget(live.get("status") or {})

    def _why_anew(self, live: Raw, manifest: Manifest) -> str | None:
        """Say why the job of an earlier run is replaced; None if it is continued. Raises CommandError if its spec differs."""
        name = f"FinetuneJob {manifest.namespace}/{manifest.name}"
        status = live.get("status") or {}
        if self._options.fresh:
            return f"{name} of an earlier run is deleted; its adapter stays."
        if status.get("phase") in (Phase.FAILED, Phase.CANCELLED) and not status.get("adapter"):
            return f"{name} of an earlier run ended with {status.get('reason')}; it starts anew."
        old, new = FinetuneJobSpec.model_validate(live["spec"]), manifest.spec
        if changed := changed_fields(old.to_dict(), new.to_dict()):
            raise CommandError(
                f"{name} of an earlier run in {self._options.work_dir} has another spec: {', '.join(changed)}. A job's spec "
                "never changes: use another metadata.name, or --fresh to delete the earlier job."
            )
        return None

    @asynccontextmanager
    async def _working(
        self, cluster: LocalCluster, node: LocalNode, context: Context, manifest: Manifest
    ) -> AsyncIterator[None]:
        """Run controller and node while the block runs; then stop all processes, and keep what they said in the objects."""
        controller = Controller(context, Health())
        cluster.watch(lambda change: _mark(controller, change))
        cluster.watch(self._terminal.on_change)
        cluster.watch(lambda _: self._changed.set())
        tasks = {
            asyncio.create_task(controller.run(), name="controller"),
            asyncio.create_task(node.run(), name="node"),
        }
        failed = asyncio.create_task(_first_failure(tasks, self._stop))
        try:
            yield
        finally:
            self._terminal.close()
            for task in (*tasks, failed):
                task.cancel()
            results = await asyncio.gather(*tasks, failed, return_exceptions=True)
            await node.stop()
            # Once more, so that a trainer that was stopped is accounted for.
            await reconcile_finetune_job(context, manifest.namespace, manifest.name)
            for result in results:
                if isinstance(result, Exception):
                    raise result

    async def _until_settled(self, cluster: LocalCluster, manifest: Manifest) -> End | None:
        """Return the end of the job; None if a signal came first."""
        while not self._stop.is_set():
            self._changed.clear()
            if (end := find_end(cluster, manifest.namespace, manifest.name)) is not None:
                return end
            waiting = {asyncio.create_task(self._changed.wait()), asyncio.create_task(self._stop.wait())}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
        return None

    async def _ask(self, cluster: LocalCluster, manifest: Manifest, port: int) -> None:
        raw = cluster.read(FINETUNE_JOBS, manifest.namespace, manifest.name) or {}
        job = FinetuneJob.model_validate(raw)
        service = InferenceService.model_validate(
            cluster.read(INFERENCE_SERVICES, manifest.namespace, job.service_name)
        )
        url = f"http://127.0.0.1:{port}"
        spec, config_maps = (
            manifest.spec,
            {d["metadata"]["name"]: d.get("data") or {} for d in cluster.all(CONFIG_MAPS)},
        )
        rows = held_out_rows(spec, config_maps, min(self._options.score, MAX_ASKED))
        async with Endpoint(f"{url}/v1", model_name(service), job.adapter_name) as endpoint:
            if self._options.questions:
                self._terminal.answers([await endpoint.ask(question) for question in self._options.questions])
            if rows:
                self._terminal.score(await endpoint.score(rows))
            if self._options.keep_serving:
                question = next(iter(self._options.questions), rows[0].prompt if rows else "Hello")
                self._terminal.how_to_ask(endpoint, question, chat_page=f"{url}/chat")
                await self._stop.wait()

    def _conclude(self, cluster: LocalCluster, manifest: Manifest, end: End | None) -> ExitCode:
        status = FinetuneJobStatus.model_validate(
            (cluster.read(FINETUNE_JOBS, manifest.namespace, manifest.name) or {}).get("status") or {}
        )
        command = f"finetune run {self._options.manifest}"
        if end is None:
            saved = max((c.step for c in status.checkpoints), default=0)
            how_far = f"Step {saved} is saved" if saved else "Nothing was trained yet"
            how_far = "The adapter is published" if status.adapter is not None else how_far
            self._terminal.summary(f"Stopped. {how_far}; the same command resumes: {command} ...")
            return ExitCode.INTERRUPTED
        if not end.is_success:
            lines = [" ".join(f"Failed: {end.reason}: {end.message}".split())]
            if pods := sorted(self._folders.pods.glob("*"), key=lambda folder: folder.stat().st_mtime):
                lines.append(f"Logs: {shown_path(pods[-1])}")
            self._terminal.summary(*lines)
            return ExitCode.FAILED
        lines = [f"Done: {end.reason}: {end.message}"]
        if status.adapter is not None:
            source = parse_source(status.adapter.uri)
            folder = self._folders.claim(source.name) / source.path
            lines += ["", f"adapter  {shown_path(folder)}", f"report   {shown_path(folder / RUN_REPORT_FILE)}"]
        if not self._options.keep_serving and manifest.spec.serve is not None:
            lines += ["", "Run the same command with --keep-serving to talk to it; it does not train again."]
        self._terminal.summary(*lines)
        return ExitCode.VERIFIED


def local_settings(port: int) -> Settings:
    """Return settings of the operator for one machine; FINETUNE_OPERATOR_* variables set the others."""
    return Settings(
        trainer_image=TRAINER_IMAGE,
        inference_image=SERVER_IMAGE,
        server_url_template=f"http://127.0.0.1:{port}",
        promotion_key=SecretStr(secrets.token_hex(32)),
        resync_seconds=1.0,
        progress_seconds=1.0,
        settle_seconds=0.1,
        probe_retry_seconds=0.5,
        workers=2,
    )


def configure_logging(folders: Folders) -> None:
    """Send the reconcilers' log to a file: the terminal shows conditions and events."""
    folders.root.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folders.operator_log, encoding="utf-8")
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("finetune_operator", "finetune_cli"):
        logging.getLogger(name).setLevel(logging.INFO)


def _deploy_again(cluster: LocalCluster, job: Raw) -> Raw:
    """Forget how far the endpoint of a published adapter had come: its time limit counts from now on."""
    forgotten = ("serving", "phase", "reason", "message", "completionTime")
    status = {key: value for key, value in job["status"].items() if key not in forgotten}
    kept = [c for c in status.get("conditions") or [] if c["type"] not in ENDPOINT_CONDITIONS]
    owner = job["metadata"]["uid"]
    for service in cluster.all(INFERENCE_SERVICES):
        if any(reference["uid"] == owner for reference in service["metadata"].get("ownerReferences") or []):
            cluster.remove_with_children(INFERENCE_SERVICES, service)
    return cluster.write(FINETUNE_JOBS, {**job, "status": {**status, "conditions": kept}})


def _mark(controller: Controller, change: Change) -> None:
    metadata: dict[str, Any] = change.object["metadata"]
    kinds = {FINETUNE_JOBS: FINETUNE_JOB_KIND, INFERENCE_SERVICES: INFERENCE_SERVICE_KIND}
    if kind := kinds.get(change.resource):
        controller.mark(Key(kind, metadata["namespace"], metadata["name"]))
    for key in keys_of(metadata):
        controller.mark(key)


async def _first_failure(tasks: "set[asyncio.Task[None]]", stop: asyncio.Event) -> None:
    """End the run if the controller or the node ends: that is a bug, which the tasks' results tell."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stop.set()


def _install_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        stop.set()
        # The second one does not wait for a checkpoint.
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, on_signal)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
