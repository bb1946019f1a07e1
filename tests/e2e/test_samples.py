"""What a newcomer applies first works as it stands."""

from pathlib import Path

import yaml

from support.cluster.local_kubernetes import LocalKubernetes

SAMPLES = Path(__file__).resolve().parents[2] / "crds" / "samples"


def test_the_minimal_job_ends_with_a_verified_endpoint(kubernetes: LocalKubernetes) -> None:
    manifest = yaml.safe_load((SAMPLES / "finetunejob-minimal.yaml").read_text())
    with kubernetes.namespace("samples") as namespace:
        manifest["metadata"]["namespace"] = namespace.name
        namespace.api.create("finetunejobs", manifest)
        status = namespace.wait_for_phase(manifest["metadata"]["name"], "Succeeded", seconds=480)
        assert status["serving"]["verified"], status["serving"]
