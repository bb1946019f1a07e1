"""The node: makes the pods of Jobs and Deployments, runs them as processes, and reports what becomes of them.

It takes the place of the Job and Deployment controllers, the scheduler and the kubelet, as far as our own pods need them. What
it writes is the status that those would write, because the reconcilers decide by it.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp

from finetune_api.contract import ADAPTER_LIST_MOUNT, CONFIG_PATH
from finetune_cli.local.container import Container, Ended, build_container, stop
from finetune_cli.local.folders import Folders, inside
from finetune_cli.local.mapping import local_config, mounted_folders
from finetune_cli.local.store import Change, LocalCluster, timestamp
from finetune_operator.io.cluster import CONFIG_MAPS, DEPLOYMENTS, JOBS, PODS
from finetune_operator.kubernetes_types import Raw
from finetune_operator.resources.annotations import ANNOTATION_CONFIG

logger = logging.getLogger(__name__)

NODE_LOST: Final = "NodeLost"
"""status.reason of a pod whose command was killed; the reconcilers count it as an interruption."""
READINESS_SECONDS: Final = 0.2
"""Pause between two looks at a server that is not ready; a kubelet's period is for hundreds of pods."""
PROBE_SECONDS: Final = 5.0
"""Pause between two looks at one that is, and longest time for an answer."""
RESTART_SECONDS: Final = 2.0
"""Delay before a server that ended is started again; doubles with each restart."""
MAX_RESTART_SECONDS: Final = 60.0
STOP_SECONDS: Final = 0.1
"""Pause between two looks for processes that started during a stop."""
LABEL_BATCH_JOB: Final = "batch.kubernetes.io/job-name"
PROGRESS_FILE: Final = "progress.json"
"""In a pod's folder: the trainer's figures."""


class LocalNode:
    """Runs pods until it is stopped."""

    def __init__(
        self,
        cluster: LocalCluster,
        folders: Folders,
        port: int,
        secrets_by_name: Mapping[str, Mapping[str, str]],
        lock: int,
    ) -> None:
        """Servers listen on `port` of the loopback address. Processes keep the descriptor `lock` open."""
        self._cluster = cluster
        self._folders = folders
        self._port = port
        self._lock = lock
        self._secrets = secrets_by_name
        self._pods: dict[str, asyncio.Task[None]] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        cluster.watch(self._on_change)

    def recover(self) -> None:
        """Account for pods of an earlier command that was killed: their processes are gone."""
        for pod in self._cluster.all(PODS):
            if LABEL_BATCH_JOB not in pod["metadata"]["labels"]:
                self._cluster.remove(PODS, pod)
            elif pod["status"].get("phase") not in ("Succeeded", "Failed"):
                self._report_lost(pod)
        for deployment in self._cluster.all(DEPLOYMENTS):
            self._cluster.write(DEPLOYMENTS, {**deployment, "status": {}})

    async def run(self) -> None:
        """Follow the objects until cancelled."""
        while True:
            self._changed.clear()
            for job in self._cluster.all(JOBS):
                self._control_job(job)
            for deployment in self._cluster.all(DEPLOYMENTS):
                self._control_deployment(deployment)
            for pod in self._cluster.all(PODS):
                self._control_pod(pod)
            await self._changed.wait()

    async def stop(self) -> None:
        """Stop all processes as a node that is drained would, and wait until what they said is in their pods' status."""
        self._stopping.set()
        grace = {
            pod["metadata"]["name"]: pod["spec"]["terminationGracePeriodSeconds"] for pod in self._cluster.all(PODS)
        }
        # Again and again, because a process may be about to start while the others are stopped.
        while running := [task for task in self._pods.values() if not task.done()]:
            await asyncio.gather(*(stop(process, grace.get(name, 0)) for name, process in [*self._processes.items()]))
            await asyncio.wait(running, timeout=STOP_SECONDS)
        for pod in self._cluster.all(PODS):
            if LABEL_BATCH_JOB not in pod["metadata"]["labels"]:
                self._cluster.remove(PODS, pod)

    def _on_change(self, change: Change) -> None:
        self._changed.set()
        if change.resource == CONFIG_MAPS and not change.is_deletion:
            self._write_config_map(change.object)

    def _control_job(self, job: Raw) -> None:
        """Do as the Job controller: make one pod, and set a condition once that has ended."""
        metadata, status = job["metadata"], job.get("status") or {}
        pod = next((p for p in self._cluster.all(PODS) if _is_owned(p, job)), None)
        if pod is None and not status.get("conditions"):
            self._cluster.write(JOBS, {**job, "status": {"startTime": timestamp(), **status}})
            labels = {LABEL_BATCH_JOB: metadata["name"]}
            self._create_pod(job, "Job", job["spec"]["template"], labels)
        elif pod is not None and not status.get("conditions") and pod["status"].get("phase") in ("Succeeded", "Failed"):
            kind = "Complete" if pod["status"]["phase"] == "Succeeded" else "Failed"
            self._cluster.set_conditions(job, _condition(kind))
            self._cluster.write(JOBS, job)

    def _control_deployment(self, deployment: Raw) -> None:
        """Do as the Deployment controller for one replica; a pod of another template is stopped before its successor starts."""
        template = deployment["spec"]["template"]
        pods = [p for p in self._cluster.all(PODS) if _is_owned(p, deployment)]
        wanted = min(1, deployment["spec"].get("replicas", 1))
        current = [p for p in pods if p["metadata"]["annotations"][ANNOTATION_CONFIG] == _config(template)]
        for pod in pods:
            if pod not in current[:wanted]:
                self._cluster.mark_deleted(pod)
        if wanted and not pods and not self._stopping.is_set():
            self._create_pod(deployment, "ReplicaSet", template, {})
        ready = sum(_is_true(p, "Ready") for p in current)
        counts = {"replicas": len(pods), "updatedReplicas": len(current), "readyReplicas": ready}
        status = {"observedGeneration": deployment["metadata"]["generation"], **counts}
        if status != deployment.get("status"):
            self._cluster.write(DEPLOYMENTS, {**deployment, "status": status})

    def _control_pod(self, pod: Raw) -> None:
        """Do as the kubelet: start what is new, stop what is deleted."""
        name, phase = pod["metadata"]["name"], pod["status"].get("phase")
        task, process = self._pods.get(name), self._processes.get(name)
        if "deletionTimestamp" in pod["metadata"]:
            if task is None or task.done():
                self._cluster.remove(PODS, pod)
            elif process is not None and process.returncode is None:
                process.terminate()
        elif task is None and phase not in ("Succeeded", "Failed") and not self._stopping.is_set():
            self._pods[name] = asyncio.create_task(self._run_pod(name, pod), name=name)
            self._pods[name].add_done_callback(self._on_pod_end)

    def _on_pod_end(self, task: "asyncio.Task[None]") -> None:
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("pod failed", extra={"pod": task.get_name()}, exc_info=error)
            for pod in self._cluster.all(PODS):
                if pod["metadata"]["name"] == task.get_name():
                    why = {"phase": "Failed", "reason": "NodeError", "message": f"{type(error).__name__}: {error}"}
                    self._cluster.write(PODS, {**pod, "status": {**pod["status"], **why}})

    def _create_pod(self, owner: Raw, kind: str, template: Raw, labels: Mapping[str, str]) -> None:
        metadata = owner["metadata"]
        reference = {"kind": kind, "name": metadata["name"], "uid": metadata["uid"], "controller": True}
        pod = {
            "metadata": {
                "name": f"{metadata['name']}-{secrets.token_hex(3)}",
                "namespace": metadata["namespace"],
                "labels": {**template["metadata"]["labels"], **labels},
                "annotations": template["metadata"]["annotations"],
                "ownerReferences": [{"apiVersion": owner["apiVersion"], **reference}],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        self._cluster.add(PODS, pod)

    async def _run_pod(self, name: str, pod: Raw) -> None:
        """Run one pod from its first container to the end of its last."""
        mounts = mounted_folders(pod, self._folders)
        self._mount(pod, mounts)
        namespace, spec = pod["metadata"]["namespace"], pod["spec"]
        self._update(namespace, name, _condition("PodScheduled"), phase="Pending", podIP="127.0.0.1")
        for raw in spec.get("initContainers", []):
            ended = await self._run_container(namespace, name, raw, mounts, "initContainerStatuses")
            if ended.exit_code:
                self._update(namespace, name, phase="Failed")
                return
        restarts = 0
        while True:
            raw = spec["containers"][0]
            ended = await self._run_container(namespace, name, raw, mounts, "containerStatuses", restarts)
            if spec.get("restartPolicy") == "Never":
                self._update(namespace, name, phase="Failed" if ended.exit_code else "Succeeded")
                return
            with contextlib.suppress(TimeoutError):
                delay = min(RESTART_SECONDS * 2.0**restarts, MAX_RESTART_SECONDS)
                await asyncio.wait_for(self._stopping.wait(), delay)
            live = self._cluster.read(PODS, namespace, name)
            if self._stopping.is_set() or live is None or "deletionTimestamp" in live["metadata"]:
                return
            restarts += 1

    async def _run_container(
        self, namespace: str, name: str, raw: Raw, mounts: Mapping[str, Path], field: str, restarts: int = 0
    ) -> Ended:
        """Run a container to its end, with the status that the kubelet would write."""
        container = build_container(raw, self._folders.pod(name), mounts, self._secrets, self._extra(name, raw, mounts))
        if self._stopping.is_set():
            return Ended(143, "")
        process = self._processes[name] = await container.start(self._lock)
        status = {"name": raw["name"], "image": raw["image"], "imageID": "", "restartCount": restarts}
        running = {
            **status,
            "state": {"running": {"startedAt": timestamp()}},
            **self._last_state(namespace, name, field),
        }
        phase = "Running" if field == "containerStatuses" else "Pending"
        self._update(namespace, name, phase=phase, **{field: [running]})
        watching = asyncio.create_task(self._watch_readiness(namespace, name)) if "readinessProbe" in raw else None
        code = await process.wait()
        if watching is not None:
            watching.cancel()
            self._update(namespace, name, _condition("Ready", "False"), _condition("ContainersReady", "False"))
        ended = container.ended(code)
        terminated = _terminated(running, ended)
        self._update(namespace, name, **{field: [{**status, "state": {"terminated": terminated}}]})
        return ended

    def _extra(self, name: str, raw: Raw, mounts: Mapping[str, Path]) -> dict[str, str]:
        """Return the environment that says where on this machine the container finds what a pod has at fixed places."""
        folder = self._folders.pod(name)
        config = str(folder / Path(CONFIG_PATH).relative_to("/etc"))
        extra = {
            "FINETUNE_CONFIG_PATH": config,
            "FINETUNE_TERMINATION_LOG": str(folder / f"{raw['name']}.termination"),
            "FINETUNE_PROGRESS_FILE": str(folder / PROGRESS_FILE),
            "FINETUNE_PROGRESS_INTERVAL": "0.5",
            "FINETUNE_SERVER_CONFIG_PATH": config,
            "FINETUNE_SERVER_HOST": "127.0.0.1",
            "FINETUNE_SERVER_PORT": str(self._port),
            "FINETUNE_SERVER_CHAT_PAGE": "true",
            # No load balancer has to learn that the server is going.
            "FINETUNE_SERVER_DRAIN_DELAY_SECONDS": "0",
            "FINETUNE_SERVER_DRAIN_SECONDS": "2",
        }
        if ADAPTER_LIST_MOUNT in mounts:
            extra["FINETUNE_SERVER_ADAPTERS_PATH"] = str(mounts[ADAPTER_LIST_MOUNT] / "adapters.json")
        return extra

    def _mount(self, pod: Raw, mounts: Mapping[str, Path]) -> None:
        """Write what the pod's volumes hold: its configuration, its ConfigMaps, empty folders."""
        self._folders.pod(pod["metadata"]["name"]).mkdir(parents=True, exist_ok=True)
        for folder in mounts.values():
            folder.mkdir(parents=True, exist_ok=True)
        config = self._folders.pod(pod["metadata"]["name"]) / Path(CONFIG_PATH).relative_to("/etc")
        config.write_text(local_config(pod["metadata"]["annotations"][ANNOTATION_CONFIG], mounts), encoding="utf-8")
        for volume in pod["spec"]["volumes"]:
            if name := volume.get("configMap", {}).get("name"):
                config_map = self._cluster.read(CONFIG_MAPS, pod["metadata"]["namespace"], name)
                if config_map is not None:
                    self._write_config_map(config_map)

    def _write_config_map(self, config_map: Raw) -> None:
        """Write the keys of a ConfigMap as files. A list of adapters holds paths of its pods, which become those of this machine."""
        folder = self._folders.config_map(config_map["metadata"]["name"])
        folder.mkdir(parents=True, exist_ok=True)
        mounts: dict[str, Path] = {}
        for pod in self._cluster.all(PODS):
            found = mounted_folders(pod, self._folders)
            if found.get(ADAPTER_LIST_MOUNT) == folder:
                mounts = found
        for key, text in (config_map.get("data") or {}).items():
            staged = inside(folder, f".{key}.partial")
            staged.write_text(local_config(text, mounts) if mounts else text, encoding="utf-8")
            staged.replace(inside(folder, key))

    async def _watch_readiness(self, namespace: str, name: str) -> None:
        """Do as the kubelet's readiness probe."""
        url = f"http://127.0.0.1:{self._port}/readyz"
        was_ready = False
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_SECONDS)) as session:
            while True:
                try:
                    async with session.get(url) as response:
                        is_ready = response.status == 200
                except (aiohttp.ClientError, TimeoutError):
                    is_ready = False
                if is_ready != was_ready:
                    truth = "True" if is_ready else "False"
                    self._update(namespace, name, _condition("Ready", truth), _condition("ContainersReady", truth))
                    was_ready = is_ready
                await asyncio.sleep(PROBE_SECONDS if is_ready else READINESS_SECONDS)

    def _last_state(self, namespace: str, name: str, field: str) -> dict[str, Any]:
        """Return `lastState` of a container that is started again."""
        live = self._cluster.read(PODS, namespace, name) or {}
        before = (live.get("status", {}).get(field) or [{}])[0].get("state", {})
        return {"lastState": before} if "terminated" in before else {}

    def _update(self, namespace: str, name: str, *conditions: Raw, **status: Any) -> None:
        live = self._cluster.read(PODS, namespace, name)
        if live is None:
            return
        live["status"] = {**live["status"], **status}
        self._cluster.set_conditions(live, *conditions)
        self._cluster.write(PODS, live)

    def _report_lost(self, pod: Raw) -> None:
        """Write the last status of a pod whose processes are gone, with the last words of a trainer that still had time for some."""
        name, status = pod["metadata"]["name"], pod["status"]
        folder = self._folders.pod(name)
        for field in ("initContainerStatuses", "containerStatuses"):
            for state in status.get(field, []):
                if "running" in state["state"]:
                    container = Container(state["name"], (), {}, folder, falls_back_to_log=False)
                    ended = Ended(137, container.last_words(is_failure=True))
                    state["state"] = {"terminated": _terminated(state, ended)}
        status |= {
            "phase": "Failed",
            "reason": NODE_LOST,
            "message": "The command was killed while the pod was running.",
        }
        self._cluster.write(PODS, pod)


def _terminated(running: Raw, ended: Ended) -> Raw:
    return {
        "exitCode": ended.exit_code,
        "reason": "Error" if ended.exit_code else "Completed",
        "message": ended.message,
        "startedAt": running["state"]["running"]["startedAt"],
        "finishedAt": timestamp(),
    }


def _condition(kind: str, status: str = "True") -> Raw:
    return {"type": kind, "status": status, "lastTransitionTime": timestamp()}


def _is_true(pod: Raw, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in pod["status"].get("conditions") or [])


def _is_owned(pod: Raw, owner: Raw) -> bool:
    return any(o["uid"] == owner["metadata"]["uid"] for o in pod["metadata"].get("ownerReferences") or [])


def _config(template: Raw) -> str:
    config: str = template["metadata"]["annotations"][ANNOTATION_CONFIG]
    return config
