"""The demonstration on clusters of others: command lines and values, with stand-ins for kind and docker."""

from pathlib import Path

import pytest

from demo import cluster, kind
from demo.shell import Shell


def test_images_for_kind_take_torch_from_the_index_of_the_environment() -> None:
    assert kind.build_command("operator") == [
        *("docker", "build", "--file", "operator/Dockerfile", "--tag", "finetune-operator:demo", ".")
    ]
    assert kind.build_command("trainer")[-3:] == ["--build-arg", "TORCH_INDEX", "."]


def test_images_are_built_then_loaded_into_the_named_cluster(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for program in ("docker", "kind"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@"\n')
        (tmp_path / program).chmod(0o755)
    shell = Shell({"PATH": f"{tmp_path}:/usr/bin:/bin"})
    images = cluster.provide_images(cluster.Target(shell=shell, local=False, kind="mine"))
    lines = [line for line in capfd.readouterr().out.splitlines() if not line.startswith(" ")]
    assert [line.split()[:2] for line in lines] == [["docker", "build"]] * 3 + [["kind", "load"]]
    assert lines[-1].endswith("finetune-operator:demo finetune-trainer:demo finetune-inference:demo --name mine")
    values = cluster.chart_values(cluster.Target(shell=shell, local=False, kind="mine"), images)
    assert values["image"] == {"repository": "finetune-operator", "tag": "demo"}
    assert values["inference"]["image"] == {"repository": "finetune-inference", "tag": "demo"}
    assert "redis" not in values  # the chart's own
