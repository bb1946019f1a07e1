"""What the gateway's own models accept, the API server accepts, but for what only it can know."""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.cluster.people import TEAM, People
from support.objects.request_bodies import near_misses

ONLY_THE_API_SERVER_KNOWS = ("resources.", "serve.resources.")
"""Quantities: their grammar is in the schema only."""

PLAUSIBLE = st.one_of(
    st.integers(-2, 300),
    st.floats(-1, 2),
    st.booleans(),
    st.none(),
    st.sampled_from(["", "a", "a-b", "A", "a b", "1Gi"]),
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(near_misses(PLAUSIBLE))
def test_the_gateway_refuses_what_the_api_server_refuses(people: People, body: dict[str, Any]) -> None:
    body.pop("name", None)
    response = people.ann.call("POST", params={"namespace": TEAM}, content=json.dumps(body).encode())
    assert response.status_code in (202, 422), response.text
    if response.status_code == 422:
        for problem in response.json()["error"]["problems"]:
            from_the_api_server = problem["message"].startswith(
                ("Invalid value", "Unsupported value", "Required value")
            )
            assert not from_the_api_server or problem["field"].startswith(ONLY_THE_API_SERVER_KNOWS), problem
