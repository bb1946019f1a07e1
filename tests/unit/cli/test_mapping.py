"""Paths of pods become paths of this machine, and nothing else changes."""

import json
from pathlib import Path

import pytest

from finetune_cli.local.folders import Folders
from finetune_cli.local.mapping import local_config, local_path, mounted_folders
from finetune_operator.resources.serving import build_deployment
from finetune_operator.resources.training_job import build_training_job
from support.objects.operator_objects import SETTINGS, a_job, a_service

WORK = Folders(Path("/home/me/work"))
MOUNTS = {
    "/adapters": WORK.claim("finetune-adapters"),
    "/models": WORK.claim("models"),
    "/models/deep": WORK.claim("deep"),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/adapters", "/home/me/work/claims/finetune-adapters"),
        ("/models/tiny", "/home/me/work/claims/models/tiny"),
        ("/models/deep/x", "/home/me/work/claims/deep/x"),
        ("/modelsmore/tiny", "/modelsmore/tiny"),
        ("/etc/passwd", "/etc/passwd"),
        ("org/name", "org/name"),
        ("https://host/models/a.jsonl", "https://host/models/a.jsonl"),
        ("", ""),
    ],
)
def test_a_path_below_a_mount_is_replaced(text: str, expected: str) -> None:
    assert local_path(text, MOUNTS) == expected


def test_only_paths_of_a_configuration_are_replaced() -> None:
    config = {
        "model": {"path": "/models/tiny", "source": "pvc://models/tiny"},
        "dataset": {"inline": "/models/tiny"},
        "output": {"directory": "/adapters", "adapterName": "tone"},
        "adapters": [{"name": "/models/tiny", "path": "/adapters/tone/1"}],
    }
    changed = json.loads(local_config(json.dumps(config), MOUNTS))
    assert changed == {
        "model": {"path": "/home/me/work/claims/models/tiny", "source": "pvc://models/tiny"},
        "dataset": {"inline": "/models/tiny"},
        "output": {"directory": "/home/me/work/claims/finetune-adapters", "adapterName": "tone"},
        "adapters": [{"name": "/models/tiny", "path": "/home/me/work/claims/finetune-adapters/tone/1"}],
    }


def test_every_mount_of_the_operators_pods_has_a_folder_below_the_work_directory() -> None:
    for manifest in (build_training_job(a_job(), 1, SETTINGS), build_deployment(a_service(), SETTINGS)):
        template = manifest["spec"]["template"]
        folders = mounted_folders({"metadata": {"name": "p"}, "spec": template["spec"]}, WORK)
        containers = [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
        assert folders.keys() == {mount["mountPath"] for c in containers for mount in c["volumeMounts"]}
        assert all(folder.is_relative_to(WORK.root) for folder in folders.values())


def test_attempts_of_a_job_have_their_data_in_the_same_folders() -> None:
    pods = [
        {"metadata": {"name": f"p{n}"}, "spec": build_training_job(a_job(), n, SETTINGS)["spec"]["template"]["spec"]}
        for n in (1, 2)
    ]
    first, second = (mounted_folders(pod, WORK) for pod in pods)
    different = {mount for mount in first if first[mount] != second[mount]}
    assert different == {"/etc/finetune"}
