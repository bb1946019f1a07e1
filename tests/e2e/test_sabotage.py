"""Adapters that were tampered with, served beside the genuine one: every file verifies, and still none is called verified."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from api import Raw, wait_for
from figures import Figure, record
from local_kubernetes import DEMO_NAMESPACE, POLL_SECONDS, LocalKubernetes, Namespace
from safetensors.torch import load_file, save_file
from tiny_adapter import commit

SERVICE = "sabotage"
WEIGHTS = "adapter_model.safetensors"
EXPECTED = {
    "zeroed": "AdapterHasNoEffect",
    "renamed": "AdapterIncompatible",
    "foreign": "AdapterIncompatible",
    "halved": "AdapterIncompatible",
}
"""Reason by sabotage: tensors of zeros, tensors under names that no layer has, random ones, ones of half the strength."""
VERDICT_SECONDS = 300.0


@dataclass(frozen=True)
class Verdicts:
    """What the operator says about each adapter of one endpoint."""

    verified: dict[str, str]
    reasons: dict[str, str]
    messages: dict[str, str]


@pytest.fixture(scope="module")
def demo_job(kubernetes: LocalKubernetes) -> Raw:
    job = kubernetes.api.get("finetunejobs", DEMO_NAMESPACE, "support-tickets")
    if not job or job.get("status", {}).get("phase") != "Succeeded":
        pytest.skip("there is no finished job of the demonstration; run `make demo`")
    return job


@pytest.fixture(scope="module")
def verdicts(kubernetes: LocalKubernetes, demo_job: Raw) -> Iterator[Verdicts]:
    started = time.monotonic()
    adapter = demo_job["status"]["adapter"]
    claim, _, path = adapter["uri"].removeprefix("pvc://").partition("/")
    volume = kubernetes.volume_of(DEMO_NAMESPACE, claim)
    folders = {name: volume / SERVICE / name for name in EXPECTED}
    shutil.rmtree(volume / SERVICE, ignore_errors=True)
    entries = [{"name": "genuine", "source": adapter["uri"], "digest": adapter["digest"]}]
    for name, folder in folders.items():
        digest = sabotage(volume / path, folder, name)
        entries.append({"name": name, "source": f"pvc://{claim}/{SERVICE}/{name}", "digest": digest})
    namespace = Namespace(DEMO_NAMESPACE, kubernetes)
    namespace.serve(
        SERVICE,
        model=demo_job["spec"]["model"],
        adapters=[{**entry, "fingerprint": adapter["fingerprint"]} for entry in entries],
        resources={"cpu": "50m", "memory": "3Gi"},
    )
    try:
        found = wait_for_verdicts(namespace, len(entries))
        passed = sum(found.verified[name] == "True" for name in EXPECTED)
        figure = Figure("sabotaged adapters called verified", passed, f"of {len(EXPECTED)}", "lower", must=0)
        record("sabotage", [figure], time.monotonic() - started)
        yield found
    finally:
        namespace.api.delete("inferenceservices", DEMO_NAMESPACE, SERVICE)
        shutil.rmtree(volume / SERVICE, ignore_errors=True)


def test_the_genuine_adapter_is_verified(verdicts: Verdicts) -> None:
    assert verdicts.verified["genuine"] == "True", verdicts.messages["genuine"]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_sabotaged_adapter_is_not_and_the_reason_says_why(verdicts: Verdicts, name: str) -> None:
    assert verdicts.verified[name] == "False", verdicts.messages[name]
    assert verdicts.reasons[name] == EXPECTED[name], verdicts.messages[name]


def sabotage(genuine: Path, folder: Path, how: str) -> str:
    """A copy with other tensors and a manifest that verifies; returns its digest."""
    import torch

    shutil.copytree(genuine, folder)
    tensors = load_file(folder / WEIGHTS)
    generator = torch.Generator().manual_seed(0)
    if how == "zeroed":
        changed = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    elif how == "renamed":
        changed = {name.replace("self_attn", "attention"): tensor for name, tensor in tensors.items()}
    elif how == "halved":
        changed = {name: tensor * (0.5 if "lora_B" in name else 1.0) for name, tensor in tensors.items()}
    else:
        # Larger than the genuine ones: random directions of their size would hardly change an answer.
        changed = {
            name: torch.randn(tensor.shape, generator=generator) * tensor.std() * 10 for name, tensor in tensors.items()
        }
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, folder / WEIGHTS, {"format": "pt"})
    digest = commit(folder)
    for path in (folder.parent, folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)  # the server runs as another user
    return digest


def wait_for_verdicts(namespace: Namespace, count: int) -> Verdicts:
    def decided() -> list[Raw] | None:
        service = namespace.api.get("inferenceservices", namespace.name, SERVICE) or {}
        adapters: list[Raw] = service.get("status", {}).get("adapters", [])
        known = [adapter for adapter in adapters if adapter["verified"] != "Unknown"]
        return known if len(known) == count else None

    adapters = wait_for("a verdict about every adapter", decided, VERDICT_SECONDS, POLL_SECONDS)
    return Verdicts(
        verified={a["name"]: a["verified"] for a in adapters},
        reasons={a["name"]: a["reason"] for a in adapters},
        messages={a["name"]: a.get("message", "") for a in adapters},
    )
