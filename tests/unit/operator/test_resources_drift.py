"""Drift: differences that the API server makes by itself are none, and every change of our own fields is one."""

from typing import Any

import pytest

from finetune_operator.resources.child import build_child, content_hash, with_hash
from finetune_operator.resources.drift import has_drifted, is_outdated, is_subset
from support.objects.operator_objects import a_service

CHILD = build_child(a_service(), "v1", "ConfigMap", "tone", data={"a": "1"})


def changed(manifest: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {**manifest, "metadata": {**manifest["metadata"], **metadata}}


@pytest.mark.parametrize(
    ("live", "desired"),
    [
        ("1k", "1000"),
        ("2M", "2000k"),
        ("3G", "3000M"),
        ("4T", "4000G"),
        ("1Ki", "1024"),
        ("2Mi", "2048Ki"),
        ("3Gi", "3072Mi"),
        ("4Ti", "4096Gi"),
        ("1.5Gi", "1536Mi"),
        ("250m", "0.25"),
        (1, "1"),
    ],
)
def test_one_quantity_has_many_spellings(live: Any, desired: Any) -> None:
    assert is_subset(live, desired)
    assert is_subset(desired, live)


@pytest.mark.parametrize(
    ("live", "desired"),
    [
        ("1k", "1Ki"),
        ("1M", "1000000k"),
        ("1T", "1G"),
        ("1", "2"),
        ("1m", "1"),
        ("x", "1"),
        ("1", "x"),
        ("1x", "1"),
        (None, "1"),
        (True, "1"),
        ("1", True),
        (True, False),
    ],
)
def test_different_quantities_and_other_values_differ(live: Any, desired: Any) -> None:
    assert not is_subset(live, desired)


@pytest.mark.parametrize("value", [False, 0, None, [], {}, ""])
def test_what_is_not_stored_is_the_same_as_nothing(value: Any) -> None:
    assert is_subset({}, {"a": value})


@pytest.mark.parametrize("value", [True, 1, "X", [1], {"a": 1}])
def test_what_is_not_stored_is_no_value(value: Any) -> None:
    assert not is_subset({}, {"a": value})


def test_a_list_matches_no_other_type() -> None:
    assert is_subset("ab", ["a", "b"]) is False
    assert is_subset({"a": 1}, ["a"]) is False
    assert is_subset([1, 2], (1, 2))


@pytest.mark.parametrize("key", ["mountPath", "containerPort", "port", "name"])
def test_lists_with_a_merge_key_keep_what_others_added(key: str) -> None:
    assert is_subset([{key: 1}, {key: 2}], [{key: 2}])
    assert not is_subset([{key: 1}], [{key: 2}])


@pytest.mark.parametrize("key", ["selector", "nodeSelector"])
def test_a_selector_may_not_grow(key: str) -> None:
    assert is_subset({key: {"a": "1"}}, {key: {"a": "1"}})
    assert not is_subset({key: {"a": "1", "b": "2"}}, {key: {"a": "1"}})
    assert not is_subset({}, {key: {"a": "1"}})


def test_an_item_of_a_list_has_neither_kind_nor_version_and_has_not_drifted() -> None:
    desired = with_hash(CHILD)
    live = {key: value for key, value in desired.items() if key not in ("apiVersion", "kind")}
    assert has_drifted(desired, live) is False


def test_metadata_of_the_api_server_and_of_others_is_no_drift() -> None:
    desired = with_hash(CHILD)
    labels = {**desired["metadata"]["labels"], "theirs": "1"}
    assert has_drifted(desired, changed(desired, labels=labels, ownerReferences=[], resourceVersion="8")) is False
    assert has_drifted(desired, changed(desired, labels=None)) is True


def test_an_object_is_outdated_if_it_was_made_from_another_manifest() -> None:
    desired = with_hash(CHILD)
    assert is_outdated(desired, desired) is False
    for annotations in (None, {}, {"finetune.dev/desired-hash": "another"}):
        assert is_outdated(desired, changed(desired, annotations=annotations)) is True


def test_a_hash_is_an_annotation_beside_those_that_are_there() -> None:
    child = changed(CHILD, annotations={"mine": "1"})
    assert with_hash(child)["metadata"]["annotations"] == {
        "mine": "1",
        "finetune.dev/desired-hash": content_hash(child),
    }
    assert with_hash(CHILD)["metadata"]["annotations"] == {"finetune.dev/desired-hash": content_hash(CHILD)}
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
