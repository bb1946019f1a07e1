"""What the operator makes from what users write, as files that people can read and review."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.fingerprint import Fingerprint, Probe
from finetune_api.serving import ServingConfig
from finetune_api.training import TrainingConfig
from finetune_api.v1alpha1 import AdapterStatus, FinetuneJob, InferenceService
from finetune_operator.reconcile.service.desired import build_desired
from finetune_operator.resources.annotations import ANNOTATION_CONFIG
from finetune_operator.resources.claim import build_adapters_claim
from finetune_operator.resources.inference_service import build_inference_service
from finetune_operator.resources.training_job import build_training_job
from finetune_operator.settings import Settings

HERE = Path(__file__).parent
INPUTS = sorted((HERE / "input").glob("*.yaml"))
UID = "0a1b2c3d-0000-4000-8000-000000000000"
ADAPTER = AdapterStatus(
    name="tone",
    uri=f"pvc://finetune-adapters/tone/{UID}",
    digest=f"sha256:{'a' * 64}",
    base_model="pvc://models/tiny",
    fingerprint=Fingerprint(probes=[Probe(token_ids=[1, 2, 3], prompt_tokens=2, tuned=[-0.25], base=[-1.5])]),
)


def read(path: Path) -> tuple[Settings, dict[str, Any]]:
    documents = list(yaml.safe_load_all(path.read_text()))
    settings = documents.pop(0)["settings"] if "settings" in documents[0] else {}
    raw = documents[0]
    raw["metadata"] |= {"uid": UID, "generation": 1, "resourceVersion": "1"}
    return Settings(**settings), raw


def build(settings: Settings, raw: dict[str, Any]) -> list[dict[str, Any]]:
    if raw["kind"] == "InferenceService":
        desired = build_desired(InferenceService.model_validate(raw), settings)
        assert desired is not None
        return list(desired.children)
    job = FinetuneJob.model_validate(raw)
    manifests = [build_adapters_claim(job.metadata.namespace, settings), build_training_job(job, 1, settings)]
    if job.spec.serve is not None:
        manifests.append(build_inference_service(job, job.spec.serve, ADAPTER))
    return manifests


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
def test_the_manifests_are_those_on_file(path: Path) -> None:
    text = yaml.safe_dump_all(build(*read(path)), sort_keys=False, width=120)
    output = HERE / "output" / path.name
    if os.environ.get("UPDATE_GOLDEN"):
        output.write_text(text)
    assert output.read_text() == text, "run `UPDATE_GOLDEN=1 python -m pytest tests/golden` and review the diff"


def test_every_output_has_its_input() -> None:
    assert {p.name for p in (HERE / "output").glob("*.yaml")} == {p.name for p in INPUTS}


def pod_templates() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for path in INPUTS:
        for manifest in build(*read(path)):
            if "template" in manifest.get("spec", {}):
                found.append((f"{path.stem}-{manifest['kind']}", manifest["spec"]["template"]))
    return found


@pytest.mark.parametrize("template", [t for _, t in pod_templates()], ids=[name for name, _ in pod_templates()])
class TestEveryPod:
    def test_is_restricted(self, template: dict[str, Any]) -> None:
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for forbidden in ("hostNetwork", "hostPID", "hostIPC", "nodeName", "priorityClassName"):
            assert forbidden not in spec
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True
            assert "memory" in container["resources"]["limits"]

    def test_mounts_each_claim_once_and_nothing_from_the_node(self, template: dict[str, Any]) -> None:
        volumes = template["spec"]["volumes"]
        claims = [v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v]
        assert len(claims) == len(set(claims))
        assert not [v for v in volumes if "hostPath" in v or "secret" in v]
        names = {v["name"] for v in volumes}
        mounts = template["spec"]["containers"][0]["volumeMounts"]
        assert {m["name"] for m in mounts} == names
        assert len({m["mountPath"] for m in mounts}) == len(mounts)

    def test_is_given_a_configuration_that_its_reader_accepts(self, template: dict[str, Any]) -> None:
        text = template["metadata"]["annotations"][ANNOTATION_CONFIG]
        name = template["spec"]["containers"][0]["name"]
        model = TrainingConfig if name == "trainer" else ServingConfig
        assert model.model_validate_json(text).to_dict() == json.loads(text)

    def test_gets_credentials_by_reference_only(self, template: dict[str, Any]) -> None:
        for variable in template["spec"]["containers"][0]["env"]:
            if any(word in variable["name"] for word in ("TOKEN", "URL", "PASSWORD", "KEY")):
                assert "value" not in variable
                assert "secretKeyRef" in variable["valueFrom"]
