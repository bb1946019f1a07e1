"""Runs last in its folder: of the rights that permissions.py declares, none was missing, and each was used."""

import time

import pytest

from finetune_operator.permissions import rules
from lab.figures import Figure, record
from support.cluster.kubelet_actor import succeeding
from support.cluster.world import OPERATOR_USER, World

EXERCISE = {"test_training.py", "test_serving.py", "test_faults.py"}
"""Files whose tests together use every right."""


def test_no_request_was_denied_and_every_granted_verb_was_used(world: World, request: pytest.FixtureRequest) -> None:
    started = time.monotonic()
    world.kubelet.script(world.namespace, succeeding())
    world.submit()
    world.wait_for_phase("Succeeded")
    events = [e for e in world.plane.audit_events() if e["user"].get("username") == OPERATOR_USER]
    used = {_right(event) for event in events if "objectRef" in event}
    # An apply that creates needs both rights, and is logged as a patch with another answer.
    created = [e for e in events if e["verb"] == "patch" and e.get("responseStatus", {}).get("code") == 201]
    used |= {(*_right(event)[:2], "create") for event in created}
    granted = {(rule.group, rule.resource, verb) for rule in rules() for verb in rule.verbs}
    # While the API server starts it knows no roles yet and denies everything; that is no missing right.
    denied = {_right(e) for e in events if e.get("responseStatus", {}).get("code") == 403} - granted
    assert denied == set()
    unused = granted - used
    figures = [
        Figure("granted verbs", len(granted), "verbs", "lower"),
        Figure("granted verbs that no test used", len(unused), "verbs", "lower", must=0),
        Figure("denied requests", len(denied), "requests", "lower", must=0),
    ]
    if not {item.path.name for item in request.session.items} >= EXERCISE or request.config.getoption("keyword"):
        pytest.skip(f"whether each right is used shows only when {', '.join(sorted(EXERCISE))} run whole")
    record("operator-permissions", figures, time.monotonic() - started)
    assert unused == set()
    assert used <= granted


def _right(event: dict) -> tuple[str, str, str]:
    reference = event["objectRef"]
    resource = reference["resource"] + (f"/{reference['subresource']}" if reference.get("subresource") else "")
    return reference.get("apiGroup", ""), resource, event["verb"]
