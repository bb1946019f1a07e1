"""What counts as a difference: in children (drift) and in status (a merge patch)."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_operator.reconcile.events import EventDraft
from finetune_operator.reconcile.reporting import build_event, merge_patch
from finetune_operator.reconcile.service.served_versions import listed_adapters
from finetune_operator.resources.drift import has_drifted, is_subset
from finetune_operator.resources.serving import build_serving_children
from support.objects.operator_objects import NOW, SETTINGS, a_service


@pytest.mark.parametrize(
    ("live", "desired", "same"),
    [
        ({"a": 1, "defaulted": 2}, {"a": 1}, True),
        ({"a": 2}, {"a": 1}, False),
        ({}, {"a": 1}, False),
        ({}, {"readOnly": False}, True),
        ({"cpu": "1"}, {"cpu": "1000m"}, True),
        ({"cpu": "500m"}, {"cpu": "0.5"}, True),
        ({"memory": "1Gi"}, {"memory": "1024Mi"}, True),
        ({"memory": "1G"}, {"memory": "1Gi"}, False),
        ({"name": "1"}, {"name": "x"}, False),
        ([{"name": "a", "more": 1}], [{"name": "a"}], True),
        # Server-side apply merges these lists by key: what others added stays, whatever we do.
        ([{"name": "b"}, {"name": "a", "more": 1}], [{"name": "a"}], True),
        ([{"name": "a", "value": 2}, {"name": "b"}], [{"name": "a", "value": 1}], False),
        ([{"name": "b"}], [{"name": "a"}], False),
        (
            [{"name": "v", "mountPath": "/b"}, {"name": "v", "mountPath": "/a"}],
            [{"name": "v", "mountPath": "/a"}],
            True,
        ),
        ([{"port": 80}, {"port": 81}], [{"port": 80}], True),
        # These it replaces whole.
        ([{"path": "a"}, {"path": "b"}], [{"path": "a"}], False),
        ([{"key": "a", "effect": "x"}, {"key": "b"}], [{"key": "a"}], False),
        (["ALL", "b"], ["ALL"], False),
        ([{"name": "a"}], [], False),
        ({"selector": {"app": "x", "added": "y"}}, {"selector": {"app": "x"}}, False),
        ({"flag": True}, {"flag": 1}, True),
        (None, {"a": 1}, False),
    ],
)
def test_only_what_was_asked_for_counts(live: Any, desired: Any, same: bool) -> None:
    assert is_subset(live, desired) is same


def test_a_child_is_applied_again_when_it_or_its_intention_changed() -> None:
    desired = build_serving_children(a_service(), (), SETTINGS)[1]
    assert not has_drifted(desired, desired)
    edited = {**desired, "spec": {**desired["spec"], "replicas": 7}}
    assert has_drifted(desired, edited)
    relabelled = {**desired, "metadata": {**desired["metadata"], "labels": {}}}
    assert has_drifted(desired, relabelled)
    other = build_serving_children(a_service(replicas=2), (), SETTINGS)[1]
    assert has_drifted(other, desired)


def test_an_adapter_changes_the_list_and_no_pod_template() -> None:
    services = [a_service(adapters=a, adapterClaim="c") for a in ([], [{"name": "a", "source": "pvc://c/a"}])]
    one, other = (build_serving_children(s, listed_adapters(s, (), SETTINGS), SETTINGS) for s in services)
    assert [child["kind"] for child, was in zip(other, one, strict=True) if has_drifted(child, was)] == ["ConfigMap"]


JSON = st.recursive(
    st.integers() | st.text(max_size=3) | st.booleans(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("abc"), JSON, max_size=3)


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386, as written there."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(OBJECTS, OBJECTS)
def test_a_patch_turns_old_into_new_and_nothing_into_nothing(old: Any, new: Any) -> None:
    assert merged(old, merge_patch(old, new)) == new
    assert merge_patch(new, new) == {}


def test_a_note_fits_the_api_servers_limit_in_bytes() -> None:
    raw = {"metadata": {"name": "tone", "namespace": "ml", "uid": "u"}}
    note = build_event(raw, "FinetuneJob", EventDraft("Retrying", "x" + "ü" * 1000), NOW)["note"]
    assert note == "x" + "ü" * 511


def test_a_repeated_event_has_the_same_name() -> None:
    raw = {"metadata": {"name": "tone", "namespace": "ml", "uid": "u"}}
    first = build_event(raw, "FinetuneJob", EventDraft("Retrying", "attempt 1"), NOW)
    again = build_event(raw, "FinetuneJob", EventDraft("Retrying", "attempt 1"), NOW.replace(year=2027))
    other = build_event(raw, "FinetuneJob", EventDraft("Retrying", "attempt 2"), NOW)
    assert first["metadata"] == again["metadata"]
    assert first["metadata"]["name"] != other["metadata"]["name"]
    assert first["eventTime"] == "2026-01-02T03:04:05.000000Z"
