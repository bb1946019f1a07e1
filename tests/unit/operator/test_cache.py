"""The mirror: what it keeps, whose word counts when two disagree, and what it does when the watch breaks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_operator.errors import ClusterError, UnreadableObjectError
from finetune_operator.handlers.keys import Key
from finetune_operator.handlers.watches import KINDS, Watches
from finetune_operator.io import reflector as reflectors
from finetune_operator.io.cache import Cache, Kind, KindCache, without_noise
from finetune_operator.io.cluster import CLAIMS, FINETUNE_JOBS, JOBS, PODS, Resource
from finetune_operator.io.reflector import Reflector
from finetune_operator.io.replies import Change, Page
from finetune_operator.process.health import Health
from finetune_operator.reconcile.door import read_children
from finetune_operator.reconcile.job.training_pod import parse_child_job, parse_training_pod
from finetune_operator.reconcile.projections import project_job, project_pod
from finetune_operator.reconcile.service.server_pod import parse_server_pod
from finetune_operator.settings import Settings
from support.objects.raw_objects import CHILD, JOB, LABELS, POD, SERVICE, poisoned

OWNER = next(iter(LABELS))


def an_object(name: str = "a", version: int = 1, uid: str = "", **fields: Any) -> dict[str, Any]:
    identity = {"name": name, "namespace": "ml", "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    return {"kind": "Job", "metadata": {**identity, "labels": {OWNER: "tone"}}, **fields}


class Noted:
    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, metadata: Any, is_own_status: bool) -> None:
        self.names.append(metadata["name"] + ("*" if is_own_status else ""))


@pytest.fixture
def noted() -> Noted:
    return Noted()


@pytest.fixture
def kept(noted: Noted) -> KindCache:
    return KindCache(Kind(JOBS, owner_labels=(OWNER,), project=without_noise), noted)


def version(kept: KindCache, name: str = "a") -> str | None:
    found = kept.get("ml", name)
    return found["metadata"]["resourceVersion"] if found else None


def test_the_newest_version_counts_in_whatever_order_they_come(kept: KindCache, noted: Noted) -> None:
    kept.put(an_object(version=5, spec={"n": 5}))
    kept.put(an_object(version=3, spec={"n": 3}))
    kept.put(an_object(version=4, uid="an-older-namesake", spec={"n": 4}))
    assert (version(kept), noted.names) == ("5", ["a"])
    kept.put(an_object(version=6, spec={"n": 5}))
    assert (version(kept), noted.names) == ("6", ["a"]), "nothing changed that anybody reads"


def test_a_write_of_ours_is_seen_at_once_and_its_echo_says_nothing_new(kept: KindCache, noted: Noted) -> None:
    kept.moved_to(None, 10)
    kept.observe_write(an_object(version=11), is_own_status=True)
    kept.put(an_object(version=11))
    assert (version(kept), noted.names) == ("11", ["a*"])


def test_the_late_reply_to_a_write_revives_nothing(kept: KindCache) -> None:
    """The watch has shown the object's end before the reply to its creation arrives."""
    kept.put(an_object(version=11))
    kept.remove(an_object(version=12)["metadata"])
    kept.moved_to(None, 12)
    kept.observe_write(an_object(version=11))
    assert version(kept) is None


def test_the_deletion_of_a_namesake_removes_nothing(kept: KindCache) -> None:
    kept.put(an_object(version=5))
    kept.remove(an_object(uid="another")["metadata"])
    assert version(kept) == "5"


def test_after_a_list_nothing_is_left_that_it_did_not_show_but_later_writes(kept: KindCache, noted: Noted) -> None:
    for name, number in (("gone", 3), ("kept", 4), ("ours", 21)):
        kept.put(an_object(name, number))
    kept.retain(None, {"uid-kept"}, 20)
    assert [version(kept, name) for name in ("gone", "kept", "ours")] == [None, "4", "21"]
    assert noted.names[-1] == "gone"
    assert [raw["metadata"]["name"] for raw in kept.owned("ml", "tone")] == ["kept", "ours"]


def test_a_list_of_one_namespace_leaves_the_others_alone(kept: KindCache) -> None:
    kept.put(an_object())
    kept.retain("elsewhere", set(), 20)
    assert version(kept) == "1"


def test_readers_get_copies(kept: KindCache) -> None:
    kept.put(an_object(spec={"n": 1}))
    kept.all(None)[0]["spec"]["n"] = 2
    assert kept.owned("ml", "tone")[0]["spec"] == {"n": 1}


def test_an_object_that_is_relabelled_changes_its_owner(kept: KindCache) -> None:
    kept.put(an_object(version=1))
    moved = an_object(version=2)
    moved["metadata"]["labels"] = {OWNER: "other"}
    kept.put(moved)
    assert (kept.owned("ml", "tone"), len(kept.owned("ml", "other"))) == ([], 1)


class Live:
    """A cluster that notes what it is asked for."""

    on_written: Any = None

    def __init__(self, *answers: Any) -> None:
        self.asked: list[str] = []
        self.answers = list(answers)

    async def get(self, resource: Resource, namespace: str, name: str) -> Any:
        self.asked.append(f"{resource.plural}/{name}")
        return self.answers.pop(0) if self.answers else None


def cache_of(live: Live, kept: KindCache) -> Cache:
    return Cache(live, {JOBS: kept}, {CLAIMS: 60.0})  # type: ignore[arg-type]


def test_reads_come_from_the_mirror_and_a_claim_is_asked_for_once_it_exists(kept: KindCache) -> None:
    async def scenario() -> None:
        live = Live(None, {"metadata": {"name": "models"}})
        cache = cache_of(live, kept)
        kept.put(an_object())
        assert await cache.get(JOBS, "ml", "a") is not None
        assert [r["metadata"]["name"] for r in await cache.list(JOBS, "ml", f"{OWNER}=tone")] == ["a"]
        assert await cache.list(JOBS, "ml", f"{OWNER}=other") == await cache.list(JOBS, "x", f"{OWNER}=tone") == []
        assert live.asked == []
        assert [await cache.get(CLAIMS, "ml", "models") is None for _ in range(3)] == [True, False, False]
        assert live.asked == ["persistentvolumeclaims/models"] * 2

    asyncio.run(scenario())


def test_what_is_not_mirrored_for_its_labels_is_asked_for(noted: Noted) -> None:
    """A child's name may be taken by an object of somebody else."""

    async def scenario() -> None:
        ours = KindCache(Kind(JOBS, selector="a=b"), noted)
        live = Live(an_object("theirs"))
        cache = cache_of(live, ours)
        ours.put(an_object())
        assert await cache.get(JOBS, "ml", "a") is not None
        assert live.asked == []
        assert await cache.get(JOBS, "ml", "theirs") is not None
        assert live.asked == ["jobs/theirs"]

    asyncio.run(scenario())


def test_a_mirror_that_is_behind_catches_up_with_one_read(kept: KindCache) -> None:
    async def scenario() -> None:
        cache = cache_of(Live(an_object(version=9), None), kept)
        kept.put(an_object(version=5))
        kept.moved_to(None, 5)
        await cache.refresh(JOBS, "ml", "a")
        assert version(kept) == "9"
        await cache.refresh(JOBS, "ml", "a")
        assert version(kept) is None, "it is gone"

    asyncio.run(scenario())


class Played:
    """An API server whose watch goes as it is told: lists of objects, then events, then the end of the stream."""

    on_written: Any = None

    def __init__(self, lists: list[list[Any]], streams: list[list[Any]]) -> None:
        self.lists, self.streams = lists, streams
        self.started: list[str] = []
        self.over = asyncio.Event()

    async def pages(self, resource: Resource, namespace: str | None, selector: str = "") -> AsyncIterator[Page]:
        if not self.lists:
            raise ClusterError("list", "jobs", 0, "nothing more is played")
        items = self.lists.pop(0)
        newest = max((int(item["metadata"]["resourceVersion"]) for item in items), default=1)
        for item in items:
            yield Page([item], str(newest), "more")
        yield Page([], str(newest), "")

    async def events(
        self, resource: Resource, namespace: Any, selector: str, version: str
    ) -> AsyncIterator[Change | None]:
        self.started.append(version)
        if not self.streams:
            self.over.set()
            await asyncio.sleep(60)
        for event in self.streams.pop(0):
            if isinstance(event, Exception):
                raise event
            yield event


def mirror(kept: KindCache, lists: list[list[Any]], streams: list[list[Any]]) -> tuple[Played, Reflector]:
    async def scenario() -> tuple[Played, Reflector]:
        played = Played(lists, streams)
        reflector = Reflector(played, kept, None, lambda _: None)  # type: ignore[arg-type]
        task = asyncio.create_task(reflector.run())
        await asyncio.wait_for(played.over.wait(), 10)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return played, reflector

    return asyncio.run(scenario())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflectors, "FIRST_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(reflectors, "MAX_BACKOFF_SECONDS", 0.002)


def bookmark(number: int) -> Change:
    return "BOOKMARK", {"metadata": {"resourceVersion": str(number)}}


def test_a_watch_resumes_where_it_ended(kept: KindCache) -> None:
    streams: list[list[Any]] = [
        [None, ("ADDED", an_object("b", 7)), bookmark(9)],
        [None, ("MODIFIED", an_object("a", 11, spec={})), ClusterError("watch", "jobs", 0, "cut")],
        [None, ("DELETED", an_object("b", 12))],
    ]
    played, _ = mirror(kept, [[an_object("a", 5)]], streams)
    assert played.started == ["5", "9", "11", "12"]
    assert (version(kept), version(kept, "b")) == ("11", None)


def test_after_gone_what_was_deleted_meanwhile_is_noticed(kept: KindCache, noted: Noted) -> None:
    gone = ClusterError("watch", "jobs", 410, "too old")
    _, reflector = mirror(kept, [[an_object("a", 5), an_object("b", 6)], [an_object("b", 6)]], [[None, gone]])
    assert (version(kept), version(kept, "b")) == (None, "6")
    assert noted.names == ["a", "b", "a"]
    assert reflector.is_synced


def test_any_error_is_followed_by_another_try(kept: KindCache) -> None:
    errors = [ClusterError("watch", "jobs", status, "no") for status in (0, 401, 403, 429, 500)]
    played, reflector = mirror(kept, [[an_object()], [an_object()]], [*([e] for e in errors), [KeyError("a bug")]])
    assert len(played.started) == len(errors) + 2
    assert reflector.is_synced


PARSERS = [(CHILD, project_job, parse_child_job), (POD, project_pod, parse_training_pod)]
SERVER_POD = {**POD, "metadata": {**POD["metadata"], "labels": {"finetune.dev/service-name": "chat"}}}


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize(("raw", "project", "parse"), [*PARSERS, (SERVER_POD, project_pod, parse_server_pod)])
def test_a_projection_is_read_as_the_object_itself(raw: Any, project: Any, parse: Any, data: st.DataObject) -> None:
    """Also one of any other form: what is wrong with it is still found."""
    raw = data.draw(st.just(raw) | poisoned(raw))
    try:
        expected = read_children(parse, "X", [raw])
    except UnreadableObjectError:
        return
    found = read_children(parse, "X", [project(raw)])
    if parse is not parse_server_pod:
        assert [{**vars(o), "annotations": 0} for o in found] == [{**vars(o), "annotations": 0} for o in expected]
    else:
        kept = {k: v for k, v in expected[0].annotations.items() if k.startswith("finetune.dev/")}
        assert [{**vars(found[0]), "annotations": kept}] == [{**vars(expected[0]), "annotations": kept}]


def watches() -> tuple[Watches, list[Key]]:
    marked: list[Key] = []
    live = Live()
    return Watches(live, Settings(), lambda key, _: marked.append(key), Health()), marked  # type: ignore[arg-type]


def test_changes_mark_their_owners_and_a_status_of_ours_does_not_mark_the_job_again() -> None:
    found, marked = watches()
    found.kinds[PODS].put(POD)
    assert marked == [], "the first resync reads everything"
    found.synced.set()
    found.kinds[JOBS].put(CHILD)
    found.kinds[FINETUNE_JOBS].put(JOB)
    newer = {**JOB, "metadata": {**JOB["metadata"], "resourceVersion": "8"}, "status": {"phase": "Failed"}}
    found.kinds[FINETUNE_JOBS].observe_write(newer, is_own_status=True)
    tone = Key("FinetuneJob", "ml", "tone")
    assert marked == [tone, tone]
    assert next(iter(found.jobs()))[1].phase == "Failed"


def test_a_finished_job_is_settled_once_its_children_are() -> None:
    found, _ = watches()
    ended = {**JOB, "status": {"phase": "Succeeded", "observedGeneration": 1}}
    tone = Key("FinetuneJob", "ml", "tone")
    assert found.is_settled(tone), "there is none"
    found.kinds[FINETUNE_JOBS].put(JOB)
    assert not found.is_settled(tone)
    found.kinds[FINETUNE_JOBS].put({**ended, "metadata": {**JOB["metadata"], "resourceVersion": "8"}})
    assert found.is_settled(tone)
    found.kinds[JOBS].put(CHILD)
    assert not found.is_settled(tone), "its Job must be stopped"
    complete = {**CHILD, "status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    found.kinds[JOBS].put({**complete, "metadata": {**CHILD["metadata"], "resourceVersion": "9"}})
    assert found.is_settled(tone)
    serving = {**ended, "spec": {**JOB["spec"], "serve": {}}, "metadata": {**JOB["metadata"], "resourceVersion": "10"}}
    found.kinds[FINETUNE_JOBS].put(serving)
    assert not found.is_settled(tone), "its status follows that of its endpoint"
    assert not found.is_settled(Key("InferenceService", "ml", SERVICE["metadata"]["name"]))


def test_only_our_children_are_watched() -> None:
    selectors = {kind.resource.plural: kind.selector for kind in KINDS}
    ours = "app.kubernetes.io/managed-by=finetune-operator"
    assert selectors == {"finetunejobs": "", "inferenceservices": "", "jobs": ours, "pods": ours, "deployments": ours}
