"""REST and kubectl are two doors to the same objects, and each caller may do behind both what their token allows."""

import ssl

import httpx
import pytest

from lab.kubernetes.controlplane import ControlPlane
from support.cluster.api import Api
from support.cluster.people import OTHER, TEAM, People, a_body
from support.gateway.running_gateway import running_gateway
from support.objects.factories import a_finetune_job

IN_TEAM = {"namespace": TEAM}


def test_what_is_posted_exists_with_the_defaults_of_the_api_server(people: People, api: Api) -> None:
    response = people.ann.call("POST", params=IN_TEAM, json=a_body(method={"lora": {"rank": 4}}))
    assert response.status_code == 202, response.text
    made = api.get("finetunejobs", TEAM, response.json()["task_id"])
    assert made is not None
    lora = made["spec"]["method"]["lora"]
    assert (lora["rank"], lora["alpha"], lora["dropout"]) == (4, 16, 0)
    assert made["spec"]["output"]["claim"] == "finetune-adapters"
    followed = people.ann.client.get(
        response.headers["location"], headers={"Authorization": f"Bearer {people.ann.token}"}
    )
    assert followed.json() == response.json()


def test_a_post_costs_one_write_and_no_read(people: People, plane: ControlPlane) -> None:
    before = len(list(plane.audit_events()))
    assert people.ann.call("POST", json=a_body(name="counted", **IN_TEAM)).status_code == 202
    mine = [
        event
        for event in list(plane.audit_events())[before:]
        if event["user"]["username"] == f"system:serviceaccount:{TEAM}:ann"
    ]
    assert [(e["verb"], e["objectRef"]["resource"], e["objectRef"]["namespace"]) for e in mine] == [
        ("create", "finetunejobs", TEAM)
    ]


def test_a_job_made_with_kubectl_is_a_task(people: People, api: Api) -> None:
    api.create("finetunejobs", a_finetune_job("by-hand", TEAM))
    status = {
        "phase": "Running",
        "reason": "Training",
        "attempt": 1,
        "progress": {"step": 3, "totalSteps": 10, "percent": 30, "loss": "0.5"},
    }
    api.patch("finetunejobs", TEAM, "by-hand", {"status": status}, "status")
    task = people.vic.call("GET", "/by-hand", params=IN_TEAM).json()
    assert (task["state"], task["phase"], task["progress"]["step"]) == ("running", "Running", 3)
    listed = people.vic.call("GET", params=IN_TEAM | {"limit": 500}).json()["items"]
    assert "by-hand" in [t["task_id"] for t in listed]


def test_pages_follow_the_api_servers_own_cursor(people: People) -> None:
    for name in ("page-a", "page-b", "page-c"):
        people.eve.call("POST", params={"namespace": OTHER}, json=a_body(name=name))
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = people.eve.call("GET", params={"namespace": OTHER, "limit": 2} | cursor).json()
        found += [t["task_id"] for t in page["items"]]
        if "continue" not in page:
            break
        assert len(page["items"]) == 2
        cursor = {"continue": page["continue"]}
    assert found == ["page-a", "page-b", "page-c"]


def test_a_cursor_that_is_none_is_refused(people: People) -> None:
    response = people.eve.call("GET", params={"namespace": OTHER, "continue": "nonsense"})
    assert response.status_code == 422
    assert response.json()["error"]["field"] == "continue"


def test_a_delete_cancels_and_keeps_the_record(people: People, api: Api) -> None:
    people.ann.call("POST", params=IN_TEAM, json=a_body(name="stopped"))
    response = people.ann.call("DELETE", "/stopped", params=IN_TEAM)
    assert (response.status_code, response.json()["state"]) == (202, "cancelling")
    job = api.get("finetunejobs", TEAM, "stopped")
    assert job is not None
    assert job["spec"]["cancel"] is True


def test_a_task_that_is_over_cannot_be_cancelled(people: People, api: Api) -> None:
    people.ann.call("POST", params=IN_TEAM, json=a_body(name="over"))
    api.patch("finetunejobs", TEAM, "over", {"status": {"phase": "Succeeded"}}, "status")
    response = people.ann.call("DELETE", "/over", params=IN_TEAM)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "AlreadyOver")


def test_retries_with_an_idempotency_key_make_one_object(people: People) -> None:
    headers = {"Idempotency-Key": "b5a1"}
    first, again = (people.ann.call("POST", params=IN_TEAM, json=a_body(), headers=headers) for _ in range(2))
    other = people.ann.call("POST", params=IN_TEAM, json=a_body(suspend=True), headers=headers)
    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 409)
    assert first.json() == again.json()


@pytest.mark.parametrize(
    ("person", "method", "path", "expected"),
    [
        ("vic", "GET", "", 200),
        ("vic", "POST", "", 403),
        ("vic", "DELETE", "/of-ann", 403),
        ("eve", "GET", "", 403),
        ("eve", "POST", "", 403),
        ("eve", "GET", "/of-ann", 403),
        ("eve", "DELETE", "/of-ann", 403),
        ("gateway", "GET", "", 403),
        ("gateway", "POST", "", 403),
        ("gateway", "GET", "/of-ann", 403),
        ("gateway", "DELETE", "/of-ann", 403),
        ("stranger", "GET", "", 401),
        ("stranger", "POST", "", 401),
        ("ann", "GET", "/nothing", 404),
        ("ann", "DELETE", "/nothing", 404),
    ],
)
def test_everybody_may_do_exactly_what_their_own_token_allows(
    person: str, method: str, path: str, expected: int, people: People
) -> None:
    people.ann.call("POST", params=IN_TEAM, json=a_body(name="of-ann"))
    body = {"json": a_body()} if method == "POST" else {}
    response = getattr(people, person).call(method, path, params=IN_TEAM, **body)
    assert response.status_code == expected, response.text
    if expected >= 400:
        assert set(response.json()) == {"error"}
    if expected == 401:
        assert response.headers["www-authenticate"].startswith("Bearer")


def test_the_gateways_own_account_may_do_nothing(people: People, plane: ControlPlane) -> None:
    api = httpx.Client(
        base_url=plane.url,
        verify=ssl.create_default_context(cafile=str(plane.ca_file)),
        trust_env=False,
        headers={"Authorization": f"Bearer {people.gateway.token}"},
    )
    for path in (
        "/api/v1/namespaces",
        f"/api/v1/namespaces/{OTHER}/secrets",
        "/apis/finetune.dev/v1alpha1/finetunejobs",
    ):
        assert api.get(path).status_code == 403


def test_a_namespace_that_does_not_exist_is_named(plane: ControlPlane, gateway: httpx.Client, api: Api) -> None:
    # Only who may write everywhere learns that a namespace does not exist; everybody else gets 403.
    metadata = {"name": "everywhere", "namespace": "default"}
    api.create("serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    root = "rbac.authorization.k8s.io"
    binding = {
        "apiVersion": f"{root}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "gateway-test-everywhere"},
        "roleRef": {"apiGroup": root, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", **metadata}],
    }
    api.client.post(f"/apis/{root}/v1/clusterrolebindings", binding)
    headers = {"Authorization": f"Bearer {plane.service_account_token('default', 'everywhere')}"}
    response = gateway.post("/llm/finetune", params={"namespace": "no-such-place"}, json=a_body(), headers=headers)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "NamespaceNotFound"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"resources": {"memory": "lots"}}, "resources.memory"),
        ({"resources": {"cpu": "-1"}}, "resources.cpu"),
    ],
)
def test_what_only_the_api_server_knows_is_reported_with_its_field(
    fields: dict[str, object], field: str, people: People
) -> None:
    response = people.ann.call("POST", params=IN_TEAM, json=a_body(**fields))
    assert response.status_code == 422, response.text
    assert response.json()["error"]["field"] == field


def test_the_gateway_is_ready_with_its_api_server_and_unready_without(
    plane: ControlPlane, gateway: httpx.Client
) -> None:
    assert gateway.get("/readyz").status_code == 200
    # Another server's certificate is not trusted either: no CA file means the system's authorities.
    with running_gateway(plane.url) as untrusting:
        assert untrusting.get("/readyz").status_code == 503
