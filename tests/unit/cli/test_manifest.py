"""A manifest is read as the API reads it, and everything that is wrong with it is said at once."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from finetune_cli.errors import ManifestError
from finetune_cli.local.folders import Folders, inside
from finetune_cli.local.manifest import changed_fields, load_manifest
from finetune_cli.local.session import apply_others
from finetune_cli.local.store import LocalCluster
from finetune_cli.local.work_directory import free_port
from finetune_operator.io.cluster import INFERENCE_SERVICES
from support.cli.finetune_command import a_job, write_manifest

SAMPLES = Path(__file__).resolve().parents[3] / "crds" / "samples"


def problems(path: Path, *documents: dict[str, Any], data: Path | None = None) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        load_manifest(write_manifest(path / "job.yaml", *documents), data)
    return caught.value.problems


def test_the_sample_of_the_demonstration_runs_with_its_data() -> None:
    manifest = load_manifest(SAMPLES / "demo.yaml", SAMPLES / "data")
    (config_map,) = manifest.others
    assert (manifest.namespace, manifest.name) == ("default", "support-tickets")
    assert {key: len(text.splitlines()) for key, text in config_map["data"].items()} == {
        "train.jsonl": 144,
        "heldout.jsonl": 36,
    }


def test_every_problem_is_named_with_the_field_that_was_meant(tmp_path: Path) -> None:
    job = a_job(hyperparameters={"epoch": 3, "learning_rat": 0.1, "batchSize": 0}, serv={})
    found = problems(tmp_path, job)
    assert found == [
        "spec.hyperparameters.batchSize: expected 1 or more, found 0",
        "spec.hyperparameters.epoch: unknown field; did you mean epochs?",
        "spec.hyperparameters.learning_rat: unknown field; did you mean learningRate?",
        "spec.serv: unknown field; did you mean serve?",
    ]


def test_a_config_map_that_is_missing_is_named_with_both_ways_to_give_it(tmp_path: Path) -> None:
    job = a_job(dataset={"source": "configmap://rows/train.jsonl"})
    assert problems(tmp_path, job) == [
        "spec.dataset.source: ConfigMap rows is not in job.yaml; add it as a document, or give --data DIR with "
        "rows/train.jsonl or rows.train.jsonl"
    ]
    rows = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rows"}, "data": {"test.jsonl": ""}}
    assert problems(tmp_path, job, rows) == [
        "spec.dataset.source: ConfigMap rows has no key train.jsonl; it has test.jsonl"
    ]


def test_a_file_without_a_job_or_with_another_kind_is_refused(tmp_path: Path) -> None:
    pod = {"apiVersion": "v1", "kind": "FinetuneJobs", "metadata": {"name": "x"}}
    assert problems(tmp_path, pod) == [
        "kind is 'FinetuneJobs'; expected one of FinetuneJob, InferenceService, ConfigMap, Secret, PersistentVolumeClaim; "
        "did you mean FinetuneJob?",
        "found 0 documents of kind FinetuneJob; expected one",
    ]


def test_a_secret_of_the_model_must_be_there_and_stays_in_memory(tmp_path: Path) -> None:
    job = a_job(model={"source": "hf://org/name", "secretRef": {"name": "hub"}})
    assert problems(tmp_path, job) == [
        "spec.model.secretRef: Secret hub is not in job.yaml; add it as a document with stringData"
    ]
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub"}, "stringData": {"token": "hf_x"}}
    manifest = load_manifest(write_manifest(tmp_path / "job.yaml", job, secret))
    assert manifest.secrets == {"hub": {"token": "hf_x"}}
    assert manifest.others == ()
    assert "hf_x" not in repr(manifest)


def test_what_one_machine_cannot_do_is_changed_and_said(tmp_path: Path) -> None:
    job = a_job(queueName="q", serve={"replicas": 3})
    manifest = load_manifest(write_manifest(tmp_path / "job.yaml", job))
    assert manifest.spec.queue_name is None
    assert manifest.spec.serve is not None
    assert manifest.spec.serve.replicas == 1
    assert len(manifest.notes) == 2


def test_a_changed_spec_is_told_by_field_and_both_values() -> None:
    old, new = {"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": "x" * 60}
    assert changed_fields(old, new) == ["spec.a.c (2, now 3)", f"spec.d (unset, now {'x' * 39}…)"]


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"metadata": {"name": "/home/me/.ssh"}, "data": {"authorized_keys": "x"}}, "metadata.name is '/home/me/.ssh'"),
        ({"metadata": {"name": "../../up"}, "data": {}}, "metadata.name is '../../up'"),
        ({"metadata": {"name": "rows", "namespace": "../up"}}, "metadata.namespace is '../up'"),
        ({"metadata": {"name": "rows", "namespace": "other"}}, "metadata.namespace is other; expected the job's"),
        ({"metadata": {"name": "rows"}, "data": {"../../up": "x"}}, "data has the key '../../up'"),
        ({"metadata": {"name": "rows"}, "data": {"..": "x"}}, "data has the key '..'"),
        ({"metadata": {"name": "rows"}, "data": {"a": 1}}, "data.a is int; expected text"),
        ({"metadata": "rows"}, "metadata is str; expected an object with a name"),
        ({"metadata": {"name": "rows"}, "data": ["a"]}, "data is list; expected keys with text"),
    ],
)
def test_a_name_that_could_be_a_path_is_refused_before_anything_is_written(
    tmp_path: Path, document: dict[str, Any], problem: str
) -> None:
    found = problems(tmp_path, {"apiVersion": "v1", "kind": "ConfigMap", **document}, a_job())
    assert any(problem in one for one in found), found


@pytest.mark.parametrize("parts", [("..",), ("a", "../b"), ("/etc",), ("",), ("a/b",)])
def test_no_object_leads_out_of_the_work_directory(tmp_path: Path, parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="is not a path below"):
        inside(tmp_path, *parts)


def test_two_runs_never_choose_the_same_port() -> None:
    with free_port() as first, free_port() as second:
        assert first != second


def test_a_service_of_an_earlier_run_gets_the_spec_that_the_file_has_now(tmp_path: Path) -> None:
    cluster = LocalCluster(Folders(tmp_path / "work"))
    file = tmp_path / "job.yaml"
    for length in (512, 1024):
        service = {"model": {"source": "pvc://models/tiny"}, "maxModelLength": length}
        other = {"apiVersion": "finetune.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": "mine"}}
        write_manifest(file, a_job(), {**other, "spec": service})
        asyncio.run(apply_others(cluster, load_manifest(file, None, None)))
    live = cluster.read(INFERENCE_SERVICES, "default", "mine") or {}
    assert live["spec"]["maxModelLength"] == 1024
    assert live["metadata"]["generation"] == 2
