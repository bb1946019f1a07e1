"""The chart in a real API server: namespaces under Pod Security `restricted`, helm, and who is calling."""

from lab.kubernetes.api import ApiClient
from lab.kubernetes.controlplane import ControlPlane
from support.cluster.api import Api, Raw, wait_for
from support.cluster.chart import CHART, NAMESPACE, RELEASE, helm

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
PLURALS = {"NetworkPolicy": "networkpolicies", "ValidatingAdmissionPolicy": "validatingadmissionpolicies"}


def a_namespace(api: Api, name: str) -> None:
    """A namespace that refuses every pod which is not restricted."""
    metadata = {"name": name, "labels": RESTRICTED}
    api.create("namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    wait_for("the service account", lambda: api.get("serviceaccounts", name, "default"))


def install(plane: ControlPlane, values: Raw | None = None) -> str:
    """Install or upgrade the chart."""
    arguments = ("upgrade", "--install", RELEASE, str(CHART), f"--namespace={NAMESPACE}")
    return helm(*arguments, kubeconfig=plane.kubeconfig, values=values or {})


def uninstall(plane: ControlPlane) -> str:
    """Remove the release, if there is one."""
    return helm("uninstall", RELEASE, f"--namespace={NAMESPACE}", "--ignore-not-found", kubeconfig=plane.kubeconfig)


def collection(manifest: Raw) -> str:
    """The URL path where a manifest is created."""
    kind, namespace, version = manifest["kind"], manifest["metadata"].get("namespace"), manifest["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{scope}/{PLURALS.get(kind, f'{kind.lower()}s')}"


def would_accept(plane: ControlPlane, manifest: Raw) -> Raw:
    """What the API server would store, whether the object exists or not; raises ApiError if it refuses."""
    path = f"{collection(manifest)}/{manifest['metadata']['name']}"
    query = "dryRun=All&fieldValidation=Strict&fieldManager=test&force=true"
    return plane.admin._call("PATCH", f"{path}?{query}", manifest, content_type="application/apply-patch+yaml")


def as_account(plane: ControlPlane, namespace: str, name: str) -> Api:
    """The API server as a service account sees it; with a certificate, because admission looks at names only."""
    user = f"system:serviceaccount:{namespace}:{name}"
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    pair = plane.authority.issue_client(f"account-{namespace}-{name}", user, groups)
    return Api(ApiClient(plane.url, plane.ca_file, pair))
