"""`helm test`: the script that trains and asks, and the objects that exist for it only."""

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType
from typing import Any

import pytest

from finetune_api.conditions import ConditionType, Phase
from finetune_api.contract import API_VERSION, FINETUNE_JOB_KIND, FINETUNE_JOB_PLURAL, GROUP
from finetune_api.v1alpha1 import FinetuneJob
from support.cluster.chart import CHART, MISSING_HELM, NAMESPACE, Raw, named, of_kind, render

needs_helm = pytest.mark.skipif(MISSING_HELM is not None, reason=str(MISSING_HELM))
SCRIPT = CHART / "files" / "train_and_ask.py"
MODEL = "pvc://models/SmolLM2-135M-Instruct"
VALUES: Raw = {"tests": {"model": MODEL, "namespace": "team-a"}, "imagePullSecrets": [{"name": "registry"}]}
KINDS = {"ConfigMap", "ServiceAccount", "Role", "RoleBinding", "Pod"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_and_ask", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    return module


class FakeApi:
    """A CustomObjectsApi that shows the given status, one for each reading, the last one for ever."""

    def __init__(self, *statuses: Raw) -> None:
        self.statuses = list(statuses)
        self.created: list[Raw] = []
        self.deleted: list[str] = []
        self.leftovers: list[str] = []

    def create_namespaced_custom_object(self, *, body: Raw, namespace: str, **kind: str) -> Raw:
        assert kind == {"group": GROUP, "version": API_VERSION.split("/")[1], "plural": FINETUNE_JOB_PLURAL}
        assert namespace == "team-a"
        self.created.append(body)
        return {"metadata": {"name": "helm-test-x"}}

    def list_namespaced_custom_object(self, *, label_selector: str, namespace: str, **_: str) -> Raw:
        assert (label_selector, namespace) == ("app.kubernetes.io/created-by=helm-test", "team-a")
        return {"items": [{"metadata": {"name": name}} for name in self.leftovers]}

    def get_namespaced_custom_object(self, *, name: str, namespace: str, **_: str) -> Raw:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return {"metadata": {"name": name, "namespace": namespace}, "status": status}

    def delete_namespaced_custom_object(self, *, name: str, namespace: str, **_: str) -> None:
        assert namespace == "team-a"
        self.deleted.append(name)


class Endpoint(ThreadingHTTPServer):
    answer = "#late [SHIPPING]"
    asked: Raw

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        self.server.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"choices": [{"message": {"content": self.server.answer}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def a_condition(kind: ConditionType, status: str = "True", message: str = "") -> Raw:
    return {"type": str(kind), "status": status, "message": message}


def verified(endpoint: Endpoint) -> Raw:
    return {
        "phase": str(Phase.SUCCEEDED),
        "conditions": [a_condition(ConditionType.ADAPTER_VERIFIED, message="Answers match the tuned model.")],
        "adapter": {"name": "helm-test-x"},
        "serving": {"url": endpoint.url},
    }


def test_the_job_is_valid(script: ModuleType) -> None:
    raw = script.manifest(MODEL)
    assert (raw["apiVersion"], raw["kind"]) == (API_VERSION, FINETUNE_JOB_KIND)
    raw["metadata"] = {"name": "x", "namespace": "ml", "uid": "u", "generation": 1, "resourceVersion": "1"}
    job = FinetuneJob.model_validate(raw)
    assert job.spec.model.source == MODEL
    assert job.spec.serve is not None
    assert len((job.spec.dataset.inline or "").splitlines()) == 8


def test_a_verified_adapter_is_asked_and_the_job_is_deleted(
    script: ModuleType, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting: Raw = {"phase": "Verifying", "conditions": [a_condition(ConditionType.ADAPTER_VERIFIED, "Unknown")]}
    api = FakeApi({}, {"phase": "Running", "message": "Step 1 of 8."}, waiting, verified(endpoint))
    assert script.run(api, "team-a", MODEL, 60) == 0
    assert api.deleted == ["helm-test-x"]
    assert endpoint.asked["model"] == "helm-test-x"
    assert endpoint.asked["messages"] == [{"role": "user", "content": script.QUESTION}]
    output = capsys.readouterr().out
    for line in ("Running: Step 1 of 8.", "Verified: Answers match", "Answer: #late [SHIPPING]", "deleted"):
        assert line in output


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            {"phase": "Failed", "message": "No claim.", "conditions": [a_condition(ConditionType.FAILED)]},
            "Failed: No claim.",
        ),
        ({"phase": "Cancelled"}, "did not succeed"),
        ({"phase": "Running"}, "not verified in time"),
    ],
    ids=["failed", "cancelled", "slow"],
)
def test_what_does_not_succeed_is_said_and_deleted(
    script: ModuleType, capsys: pytest.CaptureFixture[str], status: Raw, said: str
) -> None:
    api = FakeApi(status)
    assert script.run(api, "team-a", MODEL, 0.2) == 1
    assert api.deleted == ["helm-test-x"]
    assert said in capsys.readouterr().out


def test_the_job_of_a_killed_test_is_found_by_its_label_and_deleted(script: ModuleType, endpoint: Endpoint) -> None:
    api = FakeApi(verified(endpoint))
    api.leftovers = ["helm-test-old"]
    assert script.run(api, "team-a", MODEL, 60) == 0
    assert api.deleted == ["helm-test-old", "helm-test-x"]
    assert api.created[0]["metadata"]["labels"] == {"app.kubernetes.io/created-by": "helm-test"}


def test_an_empty_answer_and_a_silent_endpoint_fail_the_test(
    script: ModuleType, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.answer = " "
    api = FakeApi(verified(endpoint))
    assert script.run(api, "team-a", MODEL, 60) == 1
    unreachable = {**verified(endpoint), "serving": {"url": "http://127.0.0.1:9/v1"}}
    assert script.run(FakeApi(unreachable), "team-a", MODEL, 60) == 1
    assert capsys.readouterr().out.count("FAILED: ") == 2
    assert api.deleted == ["helm-test-x"]


@needs_helm
class TestObjects:
    def hooks(self, values: Raw) -> list[Raw]:
        return [m for m in render(values) if "helm.sh/hook" in m["metadata"].get("annotations", {})]

    def test_without_a_model_there_is_nothing(self) -> None:
        assert self.hooks({}) == []

    def test_all_of_them_are_hooks_and_all_but_the_pod_go_when_it_is_over(self) -> None:
        hooks = self.hooks(VALUES)
        assert {m["kind"] for m in hooks} == KINDS
        assert [m for m in render(VALUES) if m["metadata"]["name"].endswith("-test")] == hooks
        for manifest in hooks:
            annotations = manifest["metadata"]["annotations"]
            assert annotations["helm.sh/hook"] == "test"
            policies = annotations["helm.sh/hook-delete-policy"].split(",")
            if manifest["kind"] == "Pod":
                assert policies == ["before-hook-creation"], "`helm test --logs` reads the log afterwards"
                assert "helm.sh/hook-weight" not in annotations
            else:
                assert policies == ["before-hook-creation", "hook-succeeded"]
                assert annotations["helm.sh/hook-weight"] == "-1", "before the pod"

    def test_its_account_may_use_finetune_jobs_of_one_namespace(self) -> None:
        manifests = self.hooks(VALUES)
        role, binding = named(manifests, "Role", "-test"), named(manifests, "RoleBinding", "-test")
        assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "team-a"
        assert role["rules"] == [
            {"apiGroups": [GROUP], "resources": [FINETUNE_JOB_PLURAL], "verbs": ["create", "get", "list", "delete"]}
        ]
        (account,) = of_kind(manifests, "ServiceAccount")
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": NAMESPACE}
        ]

    def test_its_pod_is_restricted_and_runs_the_script_in_the_operators_image(self) -> None:
        manifests = self.hooks(VALUES)
        pod = named(manifests, "Pod", "-test")
        assert pod["metadata"]["namespace"] == NAMESPACE, "`helm test --logs` reads there"
        spec, (container,) = pod["spec"], pod["spec"]["containers"]
        operator = named(render(VALUES), "Deployment", "-operator")["spec"]["template"]["spec"]
        assert container["image"] == operator["containers"][0]["image"]
        assert container["securityContext"] == operator["containers"][0]["securityContext"]
        assert spec["securityContext"] == operator["securityContext"]
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert container["command"] == ["python", f"{container['volumeMounts'][0]['mountPath']}/{SCRIPT.name}"]
        (script,) = of_kind(manifests, "ConfigMap")
        assert script["data"][SCRIPT.name].strip() == SCRIPT.read_text().strip()
        assert spec["volumes"][0]["configMap"]["name"] == script["metadata"]["name"]
        assert spec["serviceAccountName"] == named(manifests, "ServiceAccount", "-test")["metadata"]["name"]
        assert spec["restartPolicy"] == "Never"
