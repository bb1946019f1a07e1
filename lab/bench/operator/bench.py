"""`make bench-operator`: the operator beside a naive kopf operator and a bare informer, on a real API server with a played kubelet.

Each peer is a process of its own, pinned to nothing, with a user of its own; requests come from the audit log, CPU from /proc.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab.bench.operator.api import JOB_NAME, MANAGED, MERGE, Api, in_flight, path
from lab.figures import Figure, record
from lab.kubernetes.controlplane import ControlPlane, free_ports

REPOSITORY = Path(__file__).resolve().parents[3]
PEERS = ("naive", "ours", "bare")
TICKS = os.sysconf("SC_CLK_TCK")
READS, WRITES = ("get", "list"), ("create", "update", "patch", "delete")


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=500, help="jobs at once (default: 500)")
    parser.add_argument("--settled", type=int, default=10_000, help="settled jobs before a restart (default: 10,000)")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds without a change (default: 60)")
    parser.add_argument("--updates", type=int, default=1_000, help="settled jobs that get a label (default: 1,000)")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"default: {','.join(PEERS)}")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, ControlPlane(Path(directory), audit_reads=True) as plane:
        figures = asyncio.run(Bench(plane, Path(directory), arguments).run())
    for figure in figures:
        mark = "  FALLS SHORT" if figure.falls_short else ""
        print(f"{figure.name:70} {figure.value:10.3f} {figure.unit:5} must {figure.must}{mark}")
    print(f"recorded in {record('operator', figures, time.monotonic() - started, merge=True)}")


@dataclass
class Use:
    """CPU seconds of a peer and of the API server, and requests of the peer."""

    operator: float
    api_server: float
    requests: Counter[str]
    wall: float = 0.0
    memory: float = 0.0

    def count(self, verbs: tuple[str, ...]) -> int:
        return sum(self.requests[verb] for verb in verbs)


class Bench:
    """One API server, and one peer at a time."""

    def __init__(self, plane: ControlPlane, directory: Path, arguments: Any) -> None:
        self.plane, self.directory, self.arguments = plane, directory, arguments
        self.server = pid_of(f"--secure-port={plane.ports.api_server}")
        self.peers = arguments.peers.split(",")
        self.latencies: dict[str, list[float]] = {}

    async def run(self) -> list[Figure]:
        """Measure all scenarios."""
        async with Api(self.plane.kubeconfig) as self.api:
            for file in sorted((REPOSITORY / "crds").glob("*.yaml")):
                root = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
                await self.api.call("POST", root, yaml.safe_load(file.read_text()))
            await asyncio.sleep(3)
            await self._namespace("warm")
            with self._process("actor", "lab.bench.operator.actor"):
                bursts = {peer: await self._burst(peer) for peer in self.peers}
            figures = self._burst_figures(bursts)
            if self.arguments.settled:
                await self._settle()
                figures += self._settled_figures({peer: await self._restart(peer) for peer in ("bare", "ours")})
        return figures

    async def _namespace(self, name: str) -> None:
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        await self.api.call("POST", path("namespaces"), manifest)
        for claim in ("models", "finetune-adapters"):
            spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
            body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim}, "spec": spec}
            await self.api.call("POST", path("persistentvolumeclaims", name), body)

    async def _submit(self, namespace: str, name: str) -> None:
        await self.api.call("POST", path("finetunejobs", namespace), manifest_of(name))

    @contextmanager
    def _process(self, peer: str, module: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        kubeconfig = self.plane.client_kubeconfig(f"bench-{peer}", ["system:masters"])
        command = [sys.executable, "-m", module, str(kubeconfig)]
        with (self.directory / f"{peer}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                env={**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": str(REPOSITORY), **environment},
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()

    @contextmanager
    def _peer(self, peer: str) -> Iterator[subprocess.Popen[bytes]]:
        if peer != "ours":
            with self._process(peer, f"lab.bench.operator.{peer}") as process:
                yield process
            return
        self.port = free_ports(1)[0]
        settings = {"KUBECONFIG": str(self.plane.client_kubeconfig("bench-ours", ["system:masters"]))}
        settings |= {"HEALTH_PORT": str(self.port), "HEALTH_HOST": "127.0.0.1"}
        names = {f"FINETUNE_OPERATOR_{key}": value for key, value in settings.items()}
        with self._process("ours", "finetune_operator", **names) as process:
            yield process

    async def _until_ready(self, peer: str, process: subprocess.Popen[bytes]) -> None:
        while True:
            assert process.poll() is None, (self.directory / f"{peer}.log").read_text()[-2000:]
            if peer == "ours":
                if answers(f"http://127.0.0.1:{self.port}/readyz"):
                    return
            elif b"ready" in (self.directory / f"{peer}.log").read_bytes():
                return
            await asyncio.sleep(0.05)

    async def _burst(self, peer: str) -> Use:
        """All jobs at once, until all have succeeded."""
        namespace = f"burst-{peer}"
        await self._namespace(namespace)
        with self._peer(peer) as process:
            await self._until_ready(peer, process)
            await asyncio.sleep(2)
            seen = Observer(self.api, namespace, self.arguments.jobs)
            await seen.start()
            before, requests = self._cpu(process), self._requests(peer)
            started = time.monotonic()
            await in_flight(self._submit(namespace, f"j{number}") for number in range(self.arguments.jobs))
            try:
                await asyncio.wait_for(seen.all_done.wait(), 30 + self.arguments.jobs * 0.3)
            except TimeoutError:
                for log in (self.directory / f"{peer}.log", self.directory / "actor.log"):
                    print(f"{log}:\n{log.read_text()[-3000:]}", file=sys.stderr)
                raise
            wall = time.monotonic() - started
            await asyncio.sleep(2)
            use = self._since(process, peer, before, requests)
            seen.stop()
        self.latencies[peer] = seen.latencies()
        use.wall = wall
        n = self.arguments.jobs
        print(
            f"{peer}: {n / wall:.0f} jobs/s; CPU ms/job {1000 * use.operator / n:.1f}, API server "
            f"{1000 * use.api_server / n:.1f}; reads {use.count(READS) / n:.2f}, writes {use.count(WRITES) / n:.2f} per "
            f"job; apply -> child p50 {quantile(self.latencies[peer], 0.5):.2f} s, p99 "
            f"{quantile(self.latencies[peer], 0.99):.2f} s; {use.memory:.0f} MiB; {dict(use.requests)}",
            flush=True,
        )
        return use

    async def _settle(self) -> None:
        """Make finished jobs, each with its Job and its pod, by running our operator's own jobs once, as patterns."""
        pattern = await self.api.list("finetunejobs", "burst-ours")
        job = next(raw for raw in pattern["items"] if raw["status"]["phase"] == "Succeeded")
        name = job["metadata"]["name"]
        children = {
            plural: (await self.api.list(plural, "burst-ours", f"{JOB_NAME}={name}"))["items"][0]
            for plural in ("jobs", "pods")
        }
        await self._namespace("settled")
        begin = time.monotonic()

        async def one(number: int) -> None:
            made = await self.api.call("POST", path("finetunejobs", "settled"), manifest_of(f"s{number}"))
            await self._put_status("finetunejobs", made, job["status"])
            for plural, child in children.items():
                copied = copy_of(child, made, f"s{number}-a1")
                stored = await self.api.call("POST", path(plural, "settled"), copied)
                await self._put_status(plural, stored, child["status"])

        await in_flight((one(number) for number in range(self.arguments.settled)), 24)
        print(f"{self.arguments.settled} settled jobs made in {time.monotonic() - begin:.0f} s", flush=True)

    async def _put_status(self, plural: str, raw: Any, status: Any) -> None:
        url = path(plural, "settled", raw["metadata"]["name"], "status")
        await self.api.call("PATCH", url, {"status": status}, MERGE)

    async def _restart(self, peer: str) -> dict[str, float]:
        """Start beside many settled jobs; how long until a new one is acted on, and what it costs then to stay."""
        await asyncio.sleep(5)
        server, started = cpu(self.server), time.monotonic()
        with self._peer(peer) as process:
            await self._submit("settled", f"new-{peer}")
            while not (await self.api.list("jobs", "settled", f"{JOB_NAME}=new-{peer}"))["items"]:
                assert process.poll() is None, (self.directory / f"{peer}.log").read_text()[-2000:]
                await asyncio.sleep(0.1)
            acted = time.monotonic() - started
            await asyncio.sleep(10)
            figures = {"acted": acted, "cpu": cpu(process.pid), "server": cpu(self.server) - server}
            figures["memory"] = memory(process.pid)
            before = cpu(process.pid)
            await asyncio.sleep(self.arguments.idle)
            figures["idle"] = (cpu(process.pid) - before) * 60 / self.arguments.idle
            before, requests = self._cpu(process), self._requests(peer)
            patch = {"metadata": {"labels": {"touched": peer}}}
            names = [f"s{number}" for number in range(min(self.arguments.updates, self.arguments.settled))]
            await in_flight(self.api.call("PATCH", path("finetunejobs", "settled", n), patch, MERGE) for n in names)
            await asyncio.sleep(5)
            use = self._since(process, peer, before, requests)
            figures |= {"noop reads": use.count(READS), "noop writes": use.count(WRITES), "noop cpu": use.operator}
        print(f"{peer} beside {self.arguments.settled} settled jobs: {figures}", flush=True)
        return figures

    def _cpu(self, process: subprocess.Popen[bytes]) -> tuple[float, float]:
        return cpu(process.pid), cpu(self.server)

    def _requests(self, peer: str) -> Counter[str]:
        events = (e for e in self.plane.audit_events() if e["user"].get("username") == f"bench-{peer}")
        return Counter(e["verb"] for e in events)

    def _since(
        self, process: subprocess.Popen[bytes], peer: str, before: tuple[float, float], requests: Counter[str]
    ) -> Use:
        operator, server = self._cpu(process)
        spent = self._requests(peer) - requests
        return Use(operator - before[0], server - before[1], spent, memory=memory(process.pid))

    def _burst_figures(self, uses: dict[str, Use]) -> list[Figure]:
        n, ours = self.arguments.jobs, uses["ours"]
        figures = [
            Figure(f"reads per job, {n} at once", ours.count(READS) / n, "", "lower", 2),
            Figure(f"writes per job, {n} at once", ours.count(WRITES) / n, "", "lower", 3.05),
            Figure(f"operator CPU per job, {n} at once", 1000 * ours.operator / n, "ms", "lower"),
            Figure(f"jobs per second, {n} at once", n / ours.wall, "/s", "higher"),
        ]
        if "naive" in uses:
            naive, p99 = uses["naive"], quantile(self.latencies["ours"], 0.99)
            peer = "naive kopf operator"
            figures += [
                Figure(f"operator CPU per job over naive, {n} at once", ours.operator / naive.operator, "x", "lower", 0.25, 0.1, peer),
                Figure(f"API server CPU per job over naive, {n} at once", ours.api_server / naive.api_server, "x", "lower", 0.5, None, peer),
                Figure(
                    f"apply to child, p99, over naive, {n} at once", p99 / quantile(self.latencies["naive"], 0.99), "x", "lower", 0.25, 0.14, peer,
                ),
            ]  # fmt: skip
        if "bare" in uses:
            ratio = ours.operator / uses["bare"].operator
            figures.append(
                Figure(f"operator CPU per job over bare, {n} at once", ratio, "x", "lower", 9, 3, "bare informer")
            )
        return figures

    def _settled_figures(self, found: dict[str, dict[str, float]]) -> list[Figure]:
        n, ours, bare = self.arguments.settled, found["ours"], found["bare"]
        return [
            Figure(f"restart beside {n} settled jobs until a new one is acted on", ours["acted"], "s", "lower", 5),
            Figure(f"operator CPU of that restart, {n} settled", ours["cpu"], "s", "lower", 15),
            Figure(f"API server CPU of that restart, {n} settled", ours["server"], "s", "lower", 15),
            Figure(f"memory, {n} settled", ours["memory"], "MiB", "lower", 384),
            Figure(f"memory over bare, {n} settled", ours["memory"] / bare["memory"], "x", "lower", 2.5, 1.2, "bare informer"),
            Figure(f"operator CPU of an idle minute, {n} settled", ours["idle"], "s", "lower", 0.5),
            Figure(f"reads at a no-op update of {self.arguments.updates} settled jobs", ours["noop reads"], "", "lower", 0),
            Figure(f"writes at a no-op update of {self.arguments.updates} settled jobs", ours["noop writes"], "", "lower", 0),
        ]  # fmt: skip


class Observer:
    """Receives the watches of one process, so that all times are of one clock."""

    def __init__(self, api: Api, namespace: str, count: int) -> None:
        self.api, self.namespace, self.count = api, namespace, count
        self.applied: dict[str, float] = {}
        self.created: dict[str, float] = {}
        self.done: set[str] = set()
        self.all_done = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for plural, selector in (("finetunejobs", ""), ("jobs", MANAGED)):
            listed = await self.api.list(plural, self.namespace, selector)
            self._tasks.append(asyncio.create_task(self._follow(plural, listed["version"], selector)))

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _follow(self, plural: str, version: str, selector: str) -> None:
        async for event in self.api.watch(plural, version, selector, self.namespace):
            raw, now = event["object"], time.monotonic()
            if plural == "jobs":
                self.created.setdefault(raw["metadata"]["labels"][JOB_NAME], now)
                continue
            self.applied.setdefault(raw["metadata"]["name"], now)
            if (raw.get("status") or {}).get("phase") == "Succeeded":
                self.done.add(raw["metadata"]["name"])
                if len(self.done) == self.count:
                    self.all_done.set()

    def latencies(self) -> list[float]:
        return sorted(self.created[name] - moment for name, moment in self.applied.items() if name in self.created)


def manifest_of(name: str) -> dict[str, Any]:
    rows = '{"prompt": "a", "completion": "b"}'
    spec = {"model": {"source": "pvc://models/tiny"}, "dataset": {"inline": rows}}
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FinetuneJob", "metadata": {"name": name}, "spec": spec}


def copy_of(child: dict[str, Any], owner: dict[str, Any], name: str) -> dict[str, Any]:
    """A child of the pattern as a child of another job."""
    metadata, spec = child["metadata"], dict(child["spec"])
    if child.get("kind", "Job") == "Job" and "template" in spec:
        spec.pop("selector", None)
        spec["template"] = {**spec["template"], "metadata": {"labels": dict(metadata["labels"])}}
    labels = {k: v for k, v in metadata["labels"].items() if "controller-uid" not in k and "job-name" not in k}
    labels |= {JOB_NAME: owner["metadata"]["name"], "finetune.dev/job-uid": owner["metadata"]["uid"]}
    if "template" in spec:
        spec["template"]["metadata"]["labels"] = labels
    kept = {"name": name, "labels": labels, "annotations": metadata.get("annotations", {})}
    return {"metadata": kept, "spec": {k: v for k, v in spec.items() if k != "nodeName"}}


def cpu(pid: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid: int) -> float:
    """Largest resident size so far, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def pid_of(argument: str) -> int:
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if argument.encode() in (directory / "cmdline").read_bytes().split(b"\0"):
                return int(directory.name)
        except OSError:
            continue
    raise RuntimeError(f"no process with {argument}")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - loopback
            return bool(response.status == 200)
    except OSError:
        return False


def quantile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    main()
