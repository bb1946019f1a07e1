"""Install or upgrade the chart, also after an earlier attempt that was interrupted."""

import json
from typing import Any

from demo.cluster import SYSTEM_NAMESPACE, Target
from demo.narrate import note
from demo.shell import REPOSITORY, DemoError

CHART = REPOSITORY / "helm" / "finetune-operator"
RELEASE = "finetune"
VALUES = REPOSITORY / "build" / "demo" / "values.json"
TIMEOUT = "4m"


def install(target: Target, values: dict[str, Any]) -> None:
    """`helm upgrade --install`, and wait until everything it made is ready."""
    _namespace(target)
    _forget_interrupted(target)
    VALUES.parent.mkdir(parents=True, exist_ok=True)
    VALUES.write_text(json.dumps(values, indent=2) + "\n")  # JSON is YAML
    files = [str(path) for path in (target.values_file, VALUES) if path]
    command = ["helm", "upgrade", "--install", RELEASE, str(CHART), f"--namespace={SYSTEM_NAMESPACE}"]
    command += [f"--values={file}" for file in files] + ["--wait", f"--timeout={TIMEOUT}"]
    note(" ".join(command).replace(f"{REPOSITORY}/", ""))
    try:
        target.shell.run(*command)
    except DemoError as error:
        raise DemoError(
            f"{error}\n\n{_pods(target)}",
            f"`kubectl describe pods --namespace {SYSTEM_NAMESPACE}` says why a pod does not start.",
        ) from None
    for line in _pods(target).splitlines():
        note(line)


def _namespace(target: Target) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    target.shell.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE, "labels": labels}}
    )


def _forget_interrupted(target: Target) -> None:
    """Remove the record of an operation that never ended: helm would refuse all further ones. Objects stay and are adopted."""
    for status in ("pending-install", "pending-upgrade", "pending-rollback"):
        selector = f"--selector=owner=helm,name={RELEASE},status={status}"
        target.shell.kubectl("delete", "secrets", f"--namespace={SYSTEM_NAMESPACE}", selector, "--ignore-not-found")


def _pods(target: Target) -> str:
    return target.shell.kubectl("get", "pods", f"--namespace={SYSTEM_NAMESPACE}", check=False).rstrip()
