"""What the operator writes into a pod's annotation is what trainer and server read from their file."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import BROKER_URL_ENV, CONFIG_PATH
from finetune_api.serving import ServingConfig
from finetune_api.training import TrainingConfig
from finetune_api.v1alpha1 import FinetuneJob, InferenceService
from finetune_inference.adapters.adapter_list import read_adapter_list
from finetune_inference.config import Settings as ServerSettings
from finetune_operator.reconcile.service.desired import build_desired
from finetune_operator.resources.annotations import ANNOTATION_CONFIG
from finetune_operator.resources.training_job import build_training_job
from finetune_operator.settings import Settings
from support.objects.factories import a_finetune_job, an_inference_service
from support.objects.request_bodies import SEED

MINIMAL = {k: SEED[k] for k in ("model", "dataset")}
FULL = {k: v for k, v in SEED.items() if k != "name"}


def configuration_of(manifest: dict[str, Any]) -> str:
    return str(manifest["spec"]["template"]["metadata"]["annotations"][ANNOTATION_CONFIG])


@pytest.mark.parametrize("spec", [MINIMAL, FULL], ids=["minimal", "full"])
def test_the_trainer_reads_what_the_operator_writes(spec: dict[str, Any]) -> None:
    raw = a_finetune_job(**spec)
    raw["metadata"]["uid"] = "0f0e"
    job = FinetuneJob.model_validate(raw)
    written = configuration_of(dict(build_training_job(job, 2, Settings())))
    config = TrainingConfig.model_validate_json(written)
    assert config.job is not None
    assert (config.job.uid, config.job.attempt) == ("0f0e", 2)
    assert config.hyperparameters == job.spec.hyperparameters
    assert config.lora == job.spec.method.lora
    assert config.output.adapter_name == job.adapter_name
    assert config.model_dump_json(by_alias=True, exclude_none=True) == written


def test_the_server_reads_what_the_operator_writes(tmp_path: Path) -> None:
    adapters = [{"name": "a", "source": "pvc://c/a/1"}, {"name": "b", "source": "pvc://c/b/2"}]
    raw = an_inference_service(adapters=adapters, maxModelLength=64)
    raw["metadata"]["uid"] = "0f0e"
    desired = build_desired(InferenceService.model_validate(raw), Settings())
    assert desired is not None
    children = {child["kind"]: dict(child) for child in desired.children}
    config = ServingConfig.model_validate_json(configuration_of(children["Deployment"]))
    assert (config.max_model_length, config.adapters) == (64, [])
    (tmp_path / "adapters.json").write_text(children["ConfigMap"]["data"]["adapters.json"])
    assert [(a.name[:2], a.path) for a in read_adapter_list(tmp_path / "adapters.json")] == [
        ("a@", "/adapters/a/1"),
        ("b@", "/adapters/b/2"),
    ]
    pod = children["Deployment"]["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    volume = next(v for v in pod["volumes"] if v.get("configMap", {}).get("name") == "tone-adapters")
    path = f"{mounts[volume['name']]}/{volume['configMap']['items'][0]['path']}"
    assert str(ServerSettings().adapters_path) == path, "the list is where the server looks for it"


def test_a_pods_configuration_has_no_secret() -> None:
    raw = a_finetune_job(model={"source": "hf://o/m", "secretRef": {"name": "hub-secret", "key": "token"}})
    raw["metadata"]["uid"] = "0f0e"
    job = dict(build_training_job(FinetuneJob.model_validate(raw), 1, Settings()))
    assert "hub-secret" not in configuration_of(job)
    container = job["spec"]["template"]["spec"]["containers"][0]
    secrets = [e["name"] for e in container["env"] if "secretKeyRef" in json.dumps(e)]
    assert secrets == ["HF_TOKEN", BROKER_URL_ENV]


def test_trainer_and_server_look_where_the_operator_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FINETUNE_CONFIG_PATH", "CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    config = pytest.importorskip("finetune_trainer.config")
    assert str(config.TrainerSettings().config_path) == CONFIG_PATH
