"""The cluster that the demonstration runs on: images, namespace and model, before the chart is installed."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo import kind
from demo.narrate import note
from demo.shell import REPOSITORY, DemoError, Shell
from lab.kubernetes.binaries import missing_binaries
from lab.kubernetes.cluster import environment
from lab.kubernetes.layout import default_layout
from lab.kubernetes.model import MODEL_NAME

SYSTEM_NAMESPACE = "finetune-system"
JOB_NAMESPACE = "finetune-demo"
HUB_MODEL = f"hf://HuggingFaceTB/{MODEL_NAME}"
"""The same model for a cluster that has no volume with it, but a way to the hub."""
IMAGES_REPORT = REPOSITORY / "build" / "demo" / "images.json"


@dataclass(frozen=True)
class Images:
    """The images that were built, by the chart's parts."""

    values: dict[str, dict[str, str]]
    """Each image as the chart's values name it."""
    megabytes: dict[str, float]
    """Compressed size of each; empty where it is not known."""
    operator_megabytes_over_base: float | None = None


@dataclass(frozen=True)
class Target:
    """A cluster and how this demonstration may use it."""

    shell: Shell
    local: bool
    """True for this machine's own cluster, which the demonstration brings up and fills."""
    kind: str = ""
    """Name of a cluster of kind, which the demonstration fills but does not create; otherwise empty."""
    values_file: Path | None = None
    """Values for the chart that an administrator of another cluster wrote: the images, at least."""
    model_source: str = f"pvc://models/{MODEL_NAME}"
    audit_log: Path | None = None
    """Log of all writes, where there is one."""
    warm: bool = True
    """True if nothing has to be compiled, downloaded or built for the first time."""
    hints: list[str] = field(default_factory=list)
    """Lines that a shell needs before kubectl reaches this cluster."""


def local_target() -> Target:
    """Return this machine's own cluster. Its kubeconfig is the only one used, whatever the shell's says."""
    layout = default_layout()
    variables = environment(layout)
    variables["PATH"] = variables["PATH"].replace("$PATH", Shell({}).environment.get("PATH", ""))
    return Target(
        shell=Shell(variables),
        local=True,
        audit_log=layout.audit_log,
        warm=layout.images_report.exists() and (layout.models / MODEL_NAME).exists() and not missing_binaries(),
        hints=['eval "$(python3 -m lab.kubernetes env)"'],
    )


def named_target(values_file: Path | None, model_source: str) -> Target:
    """Return the cluster of the shell's current context."""
    return Target(shell=Shell({}), local=False, values_file=values_file, model_source=model_source)


def kind_target(name: str, model_source: str) -> Target:
    """Return a cluster of kind that exists already."""
    kind.write_kubeconfig(name)
    return Target(
        shell=Shell({"KUBECONFIG": str(kind.KUBECONFIG)}),
        local=False,
        kind=name,
        warm=False,
        model_source=model_source,
        hints=[f"export KUBECONFIG={kind.KUBECONFIG}"],
    )


def bring_up(target: Target) -> None:
    """Return when the cluster answers; bring up our own and build its images and model meanwhile."""
    if target.local:
        target.shell.local_cluster("up", "--images", "--json", str(IMAGES_REPORT))
        return
    context = target.shell.kubectl("config", "current-context").strip()
    note(f"the cluster of the context {context}; nothing is brought up")
    target.shell.kubectl("get", "--raw=/readyz")


def provide_images(target: Target) -> Images | None:
    """Return the images that the cluster has; None where an administrator's values name them."""
    if target.kind:
        kind.build_and_load(target.shell, target.kind)
        names = {part: kind.image(part).partition(":") for part in kind.DOCKERFILES}
        return Images({part: {"repository": name, "tag": tag} for part, (name, _, tag) in names.items()}, {})
    if not target.local:
        note("the images are those that your values name")
        return None
    report = json.loads(IMAGES_REPORT.read_text())
    operator = report["operator"]
    return Images(
        values={name: _image(entry["ref"]) for name, entry in report.items()},
        megabytes={name: entry["compressed_bytes"] / 1e6 for name, entry in report.items()},
        operator_megabytes_over_base=(operator["compressed_bytes"] - operator["base_compressed_bytes"]) / 1e6,
    )


def provide_namespace_and_model(target: Target) -> None:
    """Create a namespace that admits only restricted pods, and in it the base model."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": JOB_NAMESPACE, "labels": labels}}
    target.shell.apply(manifest)
    note(f"namespace {JOB_NAMESPACE}, Pod Security: restricted")
    if target.local:
        target.shell.local_cluster("model", "--namespace", JOB_NAMESPACE)
        return
    note(f"the model is {target.model_source}")
    if target.model_source.startswith("pvc://"):
        claim = target.model_source.removeprefix("pvc://").partition("/")[0]
        if target.shell.get("persistentvolumeclaim", claim, f"--namespace={JOB_NAMESPACE}") is None:
            raise DemoError(
                f"namespace {JOB_NAMESPACE} has no claim {claim}",
                f"Create it with the model on it, or use --model {HUB_MODEL} if pods reach the hub.",
            )


def chart_values(target: Target, images: Images | None) -> dict[str, Any]:
    """Return values for the chart besides those of an administrator."""
    values: dict[str, Any] = {"broker": {"namespaces": [JOB_NAMESPACE]}}
    if images is None:
        return values
    values["image"] = images.values["operator"]
    for part in images.values.keys() - {"operator"}:
        values[part] = {"image": images.values[part]}
    return values


def _image(reference: str) -> dict[str, str]:
    repository, _, digest = reference.partition("@")
    return {"repository": repository, "digest": digest}
