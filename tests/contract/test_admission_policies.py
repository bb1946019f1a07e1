"""The chart's admission policies: what somebody with the operator's token can do (nothing new), and who may name a Secret."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from finetune_api.v1alpha1 import FinetuneJob, InferenceService
from finetune_operator.reconcile.service.desired import build_desired
from finetune_operator.resources.training_job import build_training_job
from finetune_operator.settings import Settings
from lab.kubernetes.api import ApiError
from lab.kubernetes.controlplane import ControlPlane
from support.cluster.api import STRATEGIC_PATCH, Api, Raw, wait_for
from support.cluster.chart import NAMESPACE
from support.cluster.chart_cluster import a_namespace, as_account, install, uninstall
from support.cluster.people import grant
from support.cluster.planes import missing
from support.objects.factories import a_finetune_job, an_inference_service

MISSING = missing(["helm"])
pytestmark = [
    pytest.mark.apiserver,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]


@pytest.fixture(scope="module")
def installed(plane: ControlPlane, api: Api) -> Iterator[None]:
    """The chart with default values."""
    install(plane)
    yield
    uninstall(plane)


@pytest.fixture(scope="module")
def operator(plane: ControlPlane, installed: None) -> Api:
    """Who has stolen the operator's identity."""
    api = as_account(plane, NAMESPACE, "finetune-operator")
    # Policies reach the API server's memory a moment after they are stored; roles as well.
    wait_for("the roles", lambda: not is_refused(lambda: api.list("finetunejobs", "team-a")))
    bad = a_training_job()
    bad["spec"]["template"]["spec"]["hostNetwork"] = True
    wait_for("the policies", lambda: is_refused(lambda: dry_run(api, "jobs", bad)))
    return api


def is_refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except ApiError as error:
        return error.status in (403, 422)
    return False


def dry_run(api: Api, plural: str, manifest: Raw) -> Raw:
    return api.client.post(f"{api.path(plural, manifest['metadata']['namespace'])}?dryRun=All", manifest)


def a_training_job() -> Raw:
    raw = a_finetune_job(
        "tone",
        "team-a",
        model={"source": "hf://o/m", "secretRef": {"name": "hub"}},
        dataset={"source": "s3://bucket/rows.jsonl", "secretRef": {"name": "rows"}},
        tracking={
            "mlflow": {"uri": "https://mlflow.example.com", "secretRef": {"name": "mlflow"}},
            "wandb": {"secretRef": {"name": "wandb"}},
        },
        evaluation={"source": "https://example.org/rows.jsonl"},
    )
    raw["metadata"]["uid"] = "0" * 36
    return copy.deepcopy(dict(build_training_job(FinetuneJob.model_validate(raw), 1, Settings())))


def a_deployment() -> Raw:
    adapter = {"name": "a", "source": "pvc://adapters/a"}
    raw = an_inference_service("tone", "team-a", adapters=[adapter], replicas=2)
    raw["metadata"]["uid"] = "0" * 36
    desired = build_desired(InferenceService.model_validate(raw), Settings())
    assert desired is not None
    return copy.deepcopy(next(dict(child) for child in desired.children if child["kind"] == "Deployment"))


def test_what_the_operator_makes_is_allowed(operator: Api) -> None:
    dry_run(operator, "jobs", a_training_job())
    dry_run(operator, "deployments", a_deployment())


def an_init_container(pod: Raw, **fields: Any) -> Raw:
    """One with our image."""
    main = pod["containers"][0]
    return {"name": "i", "image": main["image"], "securityContext": main["securityContext"], **fields}


ATTACKS: dict[str, tuple[Callable[[Raw, Raw], object], str]] = {
    "host network": (lambda _, pod: pod.update(hostNetwork=True), "host namespaces"),
    "host processes": (lambda _, pod: pod.update(hostPID=True), "host namespaces"),
    "host path": (lambda _, pod: pod["volumes"].append({"name": "h", "hostPath": {"path": "/"}}), "volumes must be"),
    "secret volume": (
        lambda _, pod: pod["volumes"].append({"name": "s", "secret": {"secretName": "x"}}),
        "volumes must be",
    ),
    "token volume": (
        lambda _, pod: pod["volumes"].append(
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
        ),
        "volumes must be",
    ),
    "another account": (lambda _, pod: pod.update(serviceAccountName="admin"), "service account"),
    "a token": (lambda _, pod: pod.update(automountServiceAccountToken=True), "service account"),
    "another image": (lambda _, pod: pod["containers"][0].update(image="evil.example/x:1"), "images must start with"),
    "a look-alike image": (
        lambda _, pod: pod["containers"][0].update(image="ghcr.io/finetune-operator/trainer-evil:1"),
        "images must start with",
    ),
    "an init container": (
        lambda _, pod: pod.update(initContainers=[{"name": "i", "image": "evil.example/x:1"}]),
        "images must start with",
    ),
    "an init container of ours with other arguments": (
        lambda _, pod: pod.update(initContainers=[an_init_container(pod, args=["train", "/datasets/x.yaml"])]),
        "command, args",
    ),
    "an init container of ours without arguments": (
        lambda _, pod: pod.update(initContainers=[an_init_container(pod)]),
        "command, args",
    ),
    "a command": (lambda _, pod: pod["containers"][0].update(command=["sh"]), "command, args"),
    "arguments": (lambda _, pod: pod["containers"][0].update(args=["validate"]), "command, args"),
    "a hook": (
        lambda _, pod: pod["containers"][0].update(lifecycle={"postStart": {"exec": {"command": ["sh"]}}}),
        "command, args",
    ),
    "privileges": (
        lambda _, pod: pod["containers"][0].update(securityContext={"privileged": True}),
        "containers must not be privileged",
    ),
    "a capability": (
        lambda _, pod: pod["containers"][0]["securityContext"].update(capabilities={"add": ["NET_RAW"]}),
        "containers must not be privileged",
    ),
    "a secret in the environment": (
        lambda _, pod: pod["containers"][0]["env"].append(
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}}
        ),
        "only the broker's Secret",
    ),
    "all of a secret": (
        lambda _, pod: pod["containers"][0].update(envFrom=[{"secretRef": {"name": "x"}}]),
        "only the broker's Secret",
    ),
    "no owner": (lambda whole, _: whole["metadata"].pop("ownerReferences"), "must be owned"),
    "another owner": (
        lambda whole, _: whole["metadata"]["ownerReferences"][0].update(kind="ConfigMap", apiVersion="v1"),
        "must be owned",
    ),
}


@pytest.mark.parametrize(("plural", "build"), [("jobs", a_training_job), ("deployments", a_deployment)])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_stolen_token_makes_nothing_else(attack: str, plural: str, build: Callable[[], Raw], operator: Api) -> None:
    manifest = build()
    change, expected = ATTACKS[attack]
    change(manifest, manifest["spec"]["template"]["spec"])
    with pytest.raises(ApiError, match=expected):
        dry_run(operator, plural, manifest)


def a_list() -> Raw:
    raw = an_inference_service("tone", "team-a", adapters=[{"name": "a", "source": "pvc://adapters/a"}])
    raw["metadata"]["uid"] = "0" * 36
    desired = build_desired(InferenceService.model_validate(raw), Settings())
    assert desired is not None
    return copy.deepcopy(next(dict(child) for child in desired.children if child["kind"] == "ConfigMap"))


def test_the_operator_writes_lists_of_adapters_and_no_other_config_map(operator: Api) -> None:
    dry_run(operator, "configmaps", a_list())
    unowned, foreign = a_list(), a_list()
    del unowned["metadata"]["ownerReferences"]
    foreign["data"]["Corefile"] = "."
    for manifest in (unowned, foreign):
        with pytest.raises(ApiError, match="a ConfigMap must"):
            dry_run(operator, "configmaps", manifest)


def test_the_operator_takes_over_no_config_map_of_others(plane: ControlPlane, operator: Api) -> None:
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "theirs", "namespace": "team-a"}}
    Api(plane.admin).create("configmaps", theirs)
    ours = a_list()
    patch = {"metadata": {"ownerReferences": ours["metadata"]["ownerReferences"]}, "data": ours["data"]}
    with pytest.raises(ApiError, match="must belong to an InferenceService"):
        operator.patch("configmaps", "team-a", "theirs", patch)


def a_pod(name: str, app: str) -> Raw:
    labels = {"app.kubernetes.io/name": app}
    metadata = {"name": name, "namespace": "team-a", "labels": labels, "annotations": {"kept": "yes"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": a_deployment()["spec"]["template"]["spec"]}


NOTE = {"metadata": {"annotations": {"finetune.dev/adapter-list": "1"}}}
POD_ATTACKS: dict[str, Raw] = {
    "a deadline": {"spec": {"activeDeadlineSeconds": 1}},
    "a label": {"metadata": {"labels": {"app": "payments"}}},
    "another annotation": {"metadata": {"annotations": {"sidecar": "inject"}}},
    "an annotation less": {"metadata": {"annotations": {"kept": None}}},
    "a finalizer": {"metadata": {"finalizers": ["example.org/never"]}},
}


def test_the_operator_notes_the_list_on_servers_and_changes_nothing_else_of_pods(
    plane: ControlPlane, operator: Api
) -> None:
    people = Api(plane.admin)
    wait_for("the account", lambda: people.get("serviceaccounts", "team-a", "default"))
    people.create("pods", a_pod("server", "finetune-inference"))
    people.create("pods", a_pod("theirs", "payments"))
    operator.patch("pods", "team-a", "server", NOTE)
    operator.patch("pods", "team-a", "server", {"metadata": {"annotations": {"finetune.dev/adapter-list": "2"}}})
    another_image = a_pod("server", "finetune-inference")["spec"]["containers"]
    another_image[0]["image"] = "evil.example/x:1"
    for attack in (*POD_ATTACKS.values(), {"spec": {"containers": another_image}}):
        with pytest.raises(ApiError, match="only the annotation"):
            operator.patch("pods", "team-a", "server", attack)
    with pytest.raises(ApiError, match="only the annotation"):
        operator.patch("pods", "team-a", "theirs", NOTE)


def a_state(kind: str, **others: str) -> Raw:
    return {"status": {**others, "conditions": [{"type": kind, "status": "True"}]}}


GATE = "finetune.dev/adapters-verified"
STATE_ATTACKS: dict[str, Raw] = {
    "a condition of the kubelet": a_state("Ready"),
    "a phase": a_state(GATE, phase="Failed"),
    "an address": a_state(GATE, podIP="10.0.0.1"),
    "conditions less": {"status": {"conditions": [{"type": "PodScheduled", "$patch": "delete"}]}},
}


def test_the_operator_says_which_servers_were_proven_and_nothing_else_of_the_state_of_pods(
    plane: ControlPlane, operator: Api
) -> None:
    people = Api(plane.admin)
    wait_for("the account", lambda: people.get("serviceaccounts", "team-a", "default"))

    def set_state(who: Api, name: str, body: Raw) -> Raw:
        return who.patch("pods", "team-a", name, body, "status", STRATEGIC_PATCH)

    for name, app in (("gated", "finetune-inference"), ("gated-too", "payments")):
        people.create("pods", a_pod(name, app))
        set_state(people, name, a_state("PodScheduled"))
    done = set_state(operator, "gated", a_state(GATE))
    assert {c["type"] for c in done["status"]["conditions"]} >= {GATE, "PodScheduled"}
    for attack in STATE_ATTACKS.values():
        with pytest.raises(ApiError, match="only the condition"):
            set_state(operator, "gated", attack)
    for attack in (POD_ATTACKS["a label"], POD_ATTACKS["another annotation"]):
        with pytest.raises(ApiError, match="only the annotation"):
            set_state(operator, "gated", attack)
    with pytest.raises(ApiError, match=r"only the annotation \S+ of a server pod"):
        set_state(operator, "gated-too", a_state(GATE))


def test_other_people_are_not_held_to_the_operators_rules(plane: ControlPlane, operator: Api) -> None:
    manifest = a_training_job()
    del manifest["metadata"]["ownerReferences"]
    dry_run(Api(plane.admin), "jobs", manifest)


def test_the_api_server_finds_no_fault_in_the_policies(plane: ControlPlane, installed: None) -> None:
    root = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
    for suffix in (
        "operator-workloads",
        "operator-pods",
        "operator-configmaps",
        "secret-references",
        "dataset-secrets",
        "mlflow-secrets",
        "wandb-secrets",
    ):

        def checked(path: str = f"{root}/finetune-{suffix}") -> Raw:
            policy = plane.admin.get(path)
            return policy.get("status", {}) if policy.get("status", {}).get("observedGeneration") else {}

        status = wait_for("the type check", checked)
        assert status.get("typeChecking", {}).get("expressionWarnings", []) == []


def test_who_cannot_read_a_secret_cannot_name_it(plane: ControlPlane, api: Api, operator: Api) -> None:
    a_namespace(api, "secrets")
    everything = {"apiGroups": ["finetune.dev"], "resources": ["*"], "verbs": ["*"]}
    reading = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["hub"], "verbs": ["get"]}
    author, reader = (
        person(plane, api, name, rules) for name, rules in (("author", [everything]), ("reader", [everything, reading]))
    )
    with_hub, with_other, plain = (
        a_finetune_job("s", "secrets", model={"source": "hf://o/m"} | extra)
        for extra in ({"secretRef": {"name": "hub"}}, {"secretRef": {"name": "other"}}, {})
    )

    def refusal(api: Api, plural: str, manifest: Raw) -> str:
        with pytest.raises(ApiError) as refused:
            dry_run(api, plural, manifest)
        return str(refused.value)

    wait_for("the role", lambda: not is_refused(lambda: dry_run(reader, "finetunejobs", with_hub)))
    wait_for("the role", lambda: not is_refused(lambda: dry_run(author, "finetunejobs", plain)))
    assert "names the Secret hub, which system:serviceaccount:secrets:author may not get" in refusal(
        author, "finetunejobs", with_hub
    )
    assert "names the Secret other" in refusal(reader, "finetunejobs", with_other)
    service = an_inference_service("s", "secrets", model={"source": "hf://o/m", "secretRef": {"name": "hub"}})
    assert "names the Secret hub" in refusal(author, "inferenceservices", service)
    rows = a_finetune_job("s", "secrets", dataset={"source": "s3://rows/k", "secretRef": {"name": "hub"}})
    dry_run(reader, "finetunejobs", rows)
    for tracker, settings in {"mlflow": {"uri": "https://mlflow.example.com"}, "wandb": {}}.items():
        tracked = a_finetune_job("s", "secrets", tracking={tracker: {**settings, "secretRef": {"name": "hub"}}})
        assert f"spec.tracking.{tracker}.secretRef names the Secret hub, which" in refusal(
            author, "finetunejobs", tracked
        )
    assert "spec.dataset.secretRef names the Secret hub, which system:serviceaccount:secrets:author" in refusal(
        author, "finetunejobs", rows
    )
    # The operator may read no Secret, and passes on what somebody who may has asked for.
    dry_run(operator, "inferenceservices", service)


def test_who_cannot_read_the_secret_can_still_cancel(plane: ControlPlane, api: Api, operator: Api) -> None:
    a_namespace(api, "cancel")
    api.create(
        "finetunejobs", a_finetune_job("s", "cancel", model={"source": "hf://o/m", "secretRef": {"name": "hub"}})
    )
    rules = [{"apiGroups": ["finetune.dev"], "resources": ["*"], "verbs": ["*"]}]
    author = person(plane, api, "author", rules, namespace="cancel")
    wait_for("the role", lambda: not is_refused(lambda: author.list("finetunejobs", "cancel")))
    assert author.patch("finetunejobs", "cancel", "s", {"spec": {"cancel": True}})["spec"]["cancel"] is True


def person(plane: ControlPlane, api: Api, name: str, rules: list[Raw], namespace: str = "secrets") -> Api:
    metadata = {"name": name, "namespace": namespace}
    api.create("serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    grant(api, name, namespace, rules)
    return as_account(plane, namespace, name)
