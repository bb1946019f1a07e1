"""The command line of the local cluster: `python3 -m lab.kubernetes <command>`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from lab.kubernetes.binaries import BINARIES, CLUSTER_BINARIES, ensure_binaries
from lab.kubernetes.cluster import Cluster, environment
from lab.kubernetes.errors import ClusterError
from lab.kubernetes.images import IMAGES, build_images, convert_in_trainer, table, write_report
from lab.kubernetes.layout import default_layout
from lab.kubernetes.model import MODEL_NAME, ensure_model, has_model
from lab.kubernetes.packages import ensure_packages
from lab.kubernetes.progress import say
from lab.kubernetes.storage import MODELS_CLAIM, claim_models, recycle_volumes


def main() -> int:
    arguments = _parse()
    started = time.monotonic()
    try:
        _COMMANDS[arguments.command](arguments)
    except ClusterError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; run the same command again to go on")
        return 130
    if arguments.command not in ("env", "status"):
        say(f"{arguments.command}: {time.monotonic() - started:.1f} s in all")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m lab.kubernetes", description="A real Kubernetes on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start the cluster, or what is missing of it")
    up.add_argument("--images", action="store_true", help="meanwhile build the project's images and make the model")
    up.add_argument("--json", type=Path, help="with --images: write the report on them to this file as well")
    down = commands.add_parser("down", help="stop and remove the cluster; images stay")
    down.add_argument("--purge", action="store_true", help="remove images, models, build layers and Go caches as well")
    commands.add_parser("status", help="what runs, and whether the node is Ready")
    commands.add_parser("env", help="print `export` lines for a shell")
    binaries = commands.add_parser("binaries", help="compile what is not compiled yet, and nothing else")
    binaries.add_argument("--only", action="append", choices=list(BINARIES), help="this one only; repeatable")
    images = commands.add_parser("images", help="build and push the project's images, and print their sizes")
    images.add_argument("--only", action="append", choices=sorted(IMAGES), help="build this one only; repeatable")
    images.add_argument("--json", type=Path, help="write the report to this file as well")
    model = commands.add_parser("model", help=f"put {MODEL_NAME} into the models volume of namespaces")
    model.add_argument(
        "--namespace", action="append", default=[], help="give this namespace a claim `models`; repeatable"
    )
    commands.add_parser("metrics", help="start the metrics server, for `kubectl top` and autoscalers")
    commands.add_parser("volumes", help="offer the volumes of deleted claims again")
    return parser.parse_args()


def _up(arguments: argparse.Namespace) -> None:
    cluster = Cluster(default_layout())
    cluster.up(beside=(lambda: _build(cluster, IMAGES, arguments.json)) if arguments.images else None)


def _down(arguments: argparse.Namespace) -> None:
    Cluster(default_layout()).down(purge=arguments.purge)


def _status(_: argparse.Namespace) -> None:
    cluster = Cluster(default_layout())
    print(f"{'COMPONENT':26}{'PID':>8}{'MEMORY MiB':>12}")
    for component in cluster.status():
        print(f"{component.name:26}{component.pid or 'stopped':>8}{component.memory_mib:>12}")
    print(f"node: {'Ready' if cluster.node_ready() else 'not ready'}")


def _env(_: argparse.Namespace) -> None:
    for name, value in environment(default_layout()).items():
        print(f'export {name}="{value}"')


def _binaries(arguments: argparse.Namespace) -> None:
    ensure_binaries(arguments.only or CLUSTER_BINARIES)


def _images(arguments: argparse.Namespace) -> None:
    cluster = Cluster(default_layout())
    with cluster.lock():
        ensure_packages()
        cluster.ensure_registry()
    _build(cluster, arguments.only or IMAGES, arguments.json)


def _build(cluster: Cluster, names: Iterable[str], json: Path | None) -> None:
    """Build images, and the model where the trainer's image is new: it has the libraries that convert the model."""
    names = list(names)
    with cluster.image_lock():
        if "trainer" in names and not has_model(cluster.layout):
            build_images(cluster.layout, ["trainer"])
            ensure_model(cluster.layout, partial(convert_in_trainer, cluster.layout))
        report = build_images(cluster.layout, names)
    if json:
        write_report(json, report)
    print(table(report))


def _metrics(_: argparse.Namespace) -> None:
    Cluster(default_layout()).start_metrics()


def _model(arguments: argparse.Namespace) -> None:
    cluster = Cluster(default_layout())
    with cluster.lock():
        say(f"the model is in {ensure_model(cluster.layout)}")
        if arguments.namespace:
            cluster.require_running()
        for namespace in arguments.namespace:
            claim_models(cluster.control_plane.admin, cluster.layout, namespace)
            say(f"pvc://{MODELS_CLAIM}/{MODEL_NAME} can be used in the namespace {namespace}")


def _volumes(_: argparse.Namespace) -> None:
    cluster = Cluster(default_layout())
    cluster.require_running()
    with cluster.lock():
        say(f"{recycle_volumes(cluster.control_plane.admin, cluster.layout)} volumes recycled")


_COMMANDS = {
    "up": _up,
    "down": _down,
    "status": _status,
    "env": _env,
    "binaries": _binaries,
    "images": _images,
    "model": _model,
    "metrics": _metrics,
    "volumes": _volumes,
}


if __name__ == "__main__":
    sys.exit(main())
