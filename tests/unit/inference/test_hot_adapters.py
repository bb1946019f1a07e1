"""Adapters that come, change and go while the server runs."""

import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune_api.contract import PROMOTE_PATH
from finetune_api.serving import Promotion, PromotionRequest, ServedAdapter, ServedModel, ServingConfig, token_digest
from finetune_inference.adapters.adapter_list import AdapterListError, read_adapter_list
from finetune_inference.adapters.promotion import NotPromotedError
from finetune_inference.adapters.registry import AdapterRegistry, UnknownModelError
from finetune_inference.adapters.registry import LoadedModel as Model
from finetune_inference.config import Settings
from finetune_inference.engine.interface import Event, Finished, Sampling, TokenRequest
from finetune_inference.inference import InferenceService
from lab.fixtures.tiny_adapter import commit, copied
from support.server.running_inference import Running, running

pytestmark = [pytest.mark.model, pytest.mark.engine]

Events = queue.SimpleQueue[Event]
QUESTION = "Where is my order?"
SECONDS = 20
"""Far more than a change takes; a test that waits as long has failed."""


def publish(path: Path, **adapters: Path | ServedAdapter) -> None:
    """Replace the list."""
    served = [a if isinstance(a, ServedAdapter) else ServedAdapter(name=n, path=str(a)) for n, a in adapters.items()]
    replace(path, json.dumps({"adapters": [each.to_dict() for each in served]}))


def replace(path: Path, text: str) -> None:
    """Replace a file as kubelet does: never half of it."""
    scratch = path.with_suffix(".new")
    scratch.write_text(text)
    scratch.rename(path)


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(SECONDS * 100):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("the condition never came true")


def surprising(*_: object) -> None:
    """What nobody foresaw."""
    raise KeyError("surprise")


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    return tmp_path / "adapters.json"


@pytest.fixture
def hot(models: Path, listed: Path) -> Iterator[Callable[..., InferenceService]]:
    """Services that look at the list a hundred times a second."""
    made: list[InferenceService] = []

    def make(*adapters: ServedAdapter, **settings: Any) -> InferenceService:
        config = ServingConfig(model=ServedModel(name="base", path=str(models / "base")), adapters=list(adapters))
        options = {"threads": 1, "adapters_path": listed, "adapters_poll_seconds": 0.01, **settings}
        made.append(InferenceService(config, Settings(**options)))
        made[-1].load()
        return made[-1]

    yield make
    for each in made:
        each.close()


def names(service: InferenceService) -> list[str]:
    return [model.name for model in service.models()]


def answer(service: InferenceService, model: str) -> str:
    return service.process_text(QUESTION, model=model, max_tokens=30).text


def begin(service: InferenceService, served: Model) -> tuple[Events, Event]:
    """Ask for a long answer; what it gives, and its first token."""
    events: Events = queue.SimpleQueue()
    request = TokenRequest(
        served.vocabulary.encode(QUESTION), "tone", 400, weights=served.weights, sampling=Sampling(temperature=0)
    )
    service.submit([(request, events.put)])
    return events, events.get(timeout=SECONDS)


def rest(events: Events) -> list[Event]:
    """The events up to the end."""
    found = [events.get(timeout=SECONDS)]
    while not isinstance(found[-1], Finished):
        found.append(events.get(timeout=SECONDS))
    return found


def test_adapters_come_and_go_without_a_restart(
    hot: Callable[..., InferenceService], server: Running, models: Path, listed: Path
) -> None:
    service = hot()
    assert names(service) == ["base"]
    publish(listed, tone=models / "formal")
    wait_until(lambda: "tone" in names(service))
    assert answer(service, "tone") == answer(server.service, "formal")
    publish(listed, tone=models / "formal", second=models / "rude")
    wait_until(lambda: "second" in names(service))
    assert answer(service, "second") == answer(server.service, "rude")
    publish(listed, second=models / "rude")
    wait_until(lambda: "tone" not in names(service))
    with pytest.raises(UnknownModelError, match="'tone' does not exist"):
        service.model("tone")
    listed.unlink()
    wait_until(lambda: names(service) == ["base"])


def test_a_version_gets_another_name_without_being_read_again(
    hot: Callable[..., InferenceService], models: Path, listed: Path, tmp_path: Path
) -> None:
    service = hot()
    folder = copied(models / "formal", tmp_path / "formal")
    digest = commit(folder)
    publish(listed, candidate=ServedAdapter(name="tone@1", path=str(folder), digest=digest))
    wait_until(lambda: "tone@1" in names(service))
    before = answer(service, "tone@1")
    (folder / "adapter_model.safetensors").write_bytes(b"gone")
    publish(listed, tone=ServedAdapter(name="tone", path=str(folder), digest=digest))
    wait_until(lambda: "tone" in names(service))
    assert names(service) == ["base", "tone"]
    assert answer(service, "tone") == before
    assert service.model("tone").adapter_name == "tone"


TOKEN = "only the list's author knows this"


@pytest.fixture
def candidate(models: Path, tmp_path: Path) -> ServedAdapter:
    """A version of `tone` that is to be proven."""
    folder = copied(models / "rude", tmp_path / "rude")
    promotion = Promotion(name="tone", token_digest=token_digest(TOKEN))
    return ServedAdapter(name="tone@1", path=str(folder), digest=commit(folder), promotion=promotion)


def test_a_proven_candidate_gets_its_name_before_the_next_list_comes(
    hot: Callable[..., InferenceService], server: Running, models: Path, listed: Path, candidate: ServedAdapter
) -> None:
    publish(listed, tone=models / "formal", candidate=candidate)
    service = hot()
    (Path(candidate.path) / "adapter_model.safetensors").write_bytes(b"gone")
    service.promote("tone@1", TOKEN)
    assert sorted(names(service)) == ["base", "tone"]
    assert answer(service, "tone") == answer(server.service, "rude")

    publish(listed, tone=models / "formal", candidate=candidate, second=models / "formal")
    wait_until(lambda: "second" in names(service))
    assert service.model("tone").root == candidate.path, "a list from before the promotion does not undo it"
    publish(listed, tone=ServedAdapter(name="tone", path=candidate.path, digest=candidate.digest))
    wait_until(lambda: "second" not in names(service))
    assert service.model("tone").root == candidate.path
    assert service.refused == {}, "nothing was read again"
    publish(listed, tone=models / "formal", candidate=candidate, third=models / "formal")
    wait_until(lambda: "third" in names(service))
    assert service.model("tone").root == str(models / "formal"), "a promotion ends with its candidate"


def test_a_candidate_without_digest_is_promoted_as_it_was_proven(
    hot: Callable[..., InferenceService], server: Running, models: Path, listed: Path, candidate: ServedAdapter
) -> None:
    publish(listed, candidate=candidate.model_copy(update={"digest": None}))
    service = hot()
    (Path(candidate.path) / "adapter_model.safetensors").write_bytes(b"gone")
    service.promote("tone@1", TOKEN)
    assert answer(service, "tone") == answer(server.service, "rude")


def test_a_candidate_of_another_version_than_was_proven_is_not_promoted(
    hot: Callable[..., InferenceService], models: Path, listed: Path, candidate: ServedAdapter
) -> None:
    publish(listed, tone=models / "formal", candidate=candidate.model_copy(update={"digest": None}))
    service = hot()
    with pytest.raises(UnknownModelError, match=rf"'tone@1' has digest {candidate.digest} here; sha256:0"):
        service.promote("tone@1", TOKEN, f"sha256:{'0' * 64}")
    assert service.model("tone").root == str(models / "formal")
    service.promote("tone@1", TOKEN, candidate.digest)
    assert service.model("tone").root == candidate.path


def test_a_promotion_does_not_hide_that_the_list_cannot_be_read(
    hot: Callable[..., InferenceService], listed: Path, candidate: ServedAdapter
) -> None:
    publish(listed, candidate=candidate)
    service = hot()
    replace(listed, '{"adapters": [{"name": "tone"}]}')
    wait_until(lambda: service.adapter_list_problem is not None)
    service.promote("tone@1", TOKEN)
    assert names(service) == ["base", "tone"]
    assert "adapters[0].path: required, but missing" in str(service.adapter_list_problem)


def test_a_candidate_that_is_not_loaded_is_not_promoted(
    hot: Callable[..., InferenceService], models: Path, listed: Path, candidate: ServedAdapter
) -> None:
    wrong = candidate.model_copy(update={"digest": f"sha256:{'0' * 64}"})
    publish(listed, tone=models / "formal", candidate=wrong)
    service = hot()
    with pytest.raises(UnknownModelError, match=r"'tone@1' is not served: .*digest"):
        service.promote("tone@1", TOKEN)
    assert service.model("tone").root == str(models / "formal")


def test_only_who_wrote_the_list_can_promote(models: Path, listed: Path, candidate: ServedAdapter) -> None:
    publish(listed, tone=models / "formal", candidate=candidate)
    config = ServingConfig(model=ServedModel(name="base", path=str(models / "base")))
    service = InferenceService(config, Settings(threads=1, adapters_path=listed, drain_delay_seconds=0))
    assert candidate.promotion is not None
    with running(service) as server, httpx.Client(base_url=server.url) as client:
        attempts = {
            ("tone@1", "a guess"): (403, "wrong_token"),
            ("tone@1", candidate.promotion.token_digest): (403, "wrong_token"),
            ("tone@2", TOKEN): (404, "model_not_found"),
            ("tone", TOKEN): (404, "model_not_found"),
            ("base", TOKEN): (404, "model_not_found"),
        }
        for (name, token), expected in attempts.items():
            answer = client.post(PROMOTE_PATH, json={"candidate": name, "token": token})
            assert (answer.status_code, answer.json()["error"]["code"]) == expected
        assert client.get("/v1/models/tone").json()["root"] == str(models / "formal")
        other = PromotionRequest(candidate="tone@1", token=TOKEN, digest=f"sha256:{'0' * 64}")
        assert client.post(PROMOTE_PATH, json=other.to_dict()).status_code == 404
        request = PromotionRequest(candidate="tone@1", token=TOKEN, digest=candidate.digest)
        answers = [client.post(PROMOTE_PATH, json=request.to_dict()).status_code for _ in range(2)]
        assert answers == [204, 404], "done once, there is no such candidate"
        assert client.get("/v1/models/tone").json()["digest"] == candidate.digest


def test_a_promotion_that_cannot_be_served_says_so_and_counts_once_it_can(
    models: Path, listed: Path, candidate: ServedAdapter
) -> None:
    publish(listed, candidate=candidate, tone=models / "formal")
    room = (models / "rude" / "adapter_model.safetensors").stat().st_size
    config = ServingConfig(model=ServedModel(name="base", path=str(models / "base")))
    settings = Settings(threads=1, adapters_path=listed, drain_delay_seconds=0, adapter_memory_bytes=room)
    weights = Path(candidate.path) / "adapter_model.safetensors"
    with running(InferenceService(config, settings)) as server, httpx.Client(base_url=server.url) as client:
        assert not server.service.model("tone@1").in_memory
        content = weights.read_bytes()
        weights.write_bytes(b"gone")
        request = PromotionRequest(candidate="tone@1", token=TOKEN, digest=candidate.digest)
        answer = client.post(PROMOTE_PATH, json=request.to_dict())
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"]) == (500, "server_error", "not_promoted")
        reason = client.get("/readyz").json()["refusedAdapters"]["tone"]
        assert error["message"] == f"The candidate 'tone@1' cannot be served as 'tone': {reason}"
        assert "its manifest says" in reason
        assert client.get("/v1/models/tone").json()["root"] == str(models / "formal")
        weights.write_bytes(content)
        commit(Path(candidate.path))
        wait_until(lambda: client.get("/v1/models/tone").json()["root"] == candidate.path)


def test_a_promotion_that_is_not_applied_says_so(
    hot: Callable[..., InferenceService], listed: Path, candidate: ServedAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(listed, candidate=candidate)
    service = hot()
    monkeypatch.setattr(AdapterRegistry, "apply", surprising)
    with pytest.raises(
        NotPromotedError, match="cannot be served as 'tone': the adapters could not be applied: KeyError: 'surprise'"
    ):
        service.promote("tone@1", TOKEN)


def test_a_request_keeps_the_version_it_began_with(
    hot: Callable[..., InferenceService], server: Running, models: Path, listed: Path
) -> None:
    publish(listed, tone=models / "formal")
    service = hot()
    old = service.model("tone")
    running_request, first = begin(service, old)
    publish(listed, tone=models / "rude")
    wait_until(lambda: service.model("tone").root == str(models / "rude"))
    alone, begun = begin(server.service, server.service.model("formal"))
    assert [first, *rest(running_request)] == [begun, *rest(alone)]
    assert answer(service, "tone") == answer(server.service, "rude")


def test_a_broken_version_is_refused_and_the_one_before_it_stays(
    hot: Callable[..., InferenceService], server: Running, models: Path, listed: Path, tmp_path: Path
) -> None:
    publish(listed, tone=models / "formal")
    service = hot()
    broken = copied(models / "rude", tmp_path / "broken")
    weights = broken / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    publish(listed, tone=broken, absent=tmp_path / "absent")
    wait_until(lambda: set(service.refused) == {"tone", "absent"})
    assert "its manifest says" in service.refused["tone"]
    assert "is not a committed folder" in service.refused["absent"]
    assert answer(service, "tone") == answer(server.service, "formal")
    weights.write_bytes(content)
    commit(broken)
    copied(models / "formal", tmp_path / "absent")
    wait_until(lambda: not service.refused)
    assert answer(service, "tone") == answer(server.service, "rude")
    assert answer(service, "absent") == answer(server.service, "formal")


def test_a_list_that_cannot_be_read_changes_nothing(
    models: Path, settings: Settings, listed: Path, tmp_path: Path
) -> None:
    publish(listed, tone=models / "formal")
    config = ServingConfig(model=ServedModel(name="base", path=str(models / "base")))
    changed = settings.model_copy(update={"adapters_path": listed, "adapters_poll_seconds": 0.01})
    with running(InferenceService(config, changed)) as server, httpx.Client(base_url=server.url) as http:
        replace(listed, '{"adapters": [{"name": "tone"}]}')
        wait_until(lambda: "adapterList" in http.get("/readyz").json())
        assert "adapters[0].path: required, but missing" in http.get("/readyz").json()["adapterList"]
        assert names(server.service) == ["base", "tone"]
        publish(listed)
        wait_until(lambda: http.get("/readyz").json() == {"status": "ready", "refusedAdapters": {}})
        assert names(server.service) == ["base"]


def test_the_list_wins_over_the_configuration_and_every_version_has_its_digest(
    models: Path, settings: Settings, listed: Path
) -> None:
    publish(listed, tone=models / "rude")
    config = ServingConfig(
        model=ServedModel(name="base", path=str(models / "base")),
        adapters=[ServedAdapter(name="tone", path=str(models / "formal"))],
    )
    changed = settings.model_copy(update={"adapters_path": listed, "adapters_poll_seconds": 0.01})
    with running(InferenceService(config, changed)) as server, server.openai as client:

        def digest() -> str:
            return str(client.models.retrieve("tone").model_dump()["digest"])

        listed_digest = digest()
        publish(listed)
        wait_until(lambda: digest() != listed_digest)
        assert client.models.retrieve("tone").model_dump()["root"] == str(models / "formal")


def test_adapters_beyond_the_memory_are_read_again_when_somebody_asks(
    hot: Callable[..., InferenceService], server: Running, models: Path
) -> None:
    adapters = [ServedAdapter(name=name, path=str(models / name)) for name in ("formal", "rude")]
    room = (models / "rude" / "adapter_model.safetensors").stat().st_size
    small = hot(*adapters, adapter_memory_bytes=room)
    assert [model.in_memory for model in small.models()] == [True, False, True]
    for name in ("formal", "rude", "formal"):
        assert answer(small, name) == answer(server.service, name)
        assert 0 < small.adapter_bytes <= room
    with running(InferenceService(small.config, small.settings)) as other, other.openai as client:
        assert not other.service.model("formal").in_memory
        assert client.completions.create(model="formal", prompt="hi", max_tokens=2).usage


def test_an_adapter_that_cannot_be_read_again_is_refused_until_its_folder_is_back(
    hot: Callable[..., InferenceService], server: Running, models: Path, tmp_path: Path
) -> None:
    folder = copied(models / "formal", tmp_path / "tone")
    room = (models / "rude" / "adapter_model.safetensors").stat().st_size
    adapters = [
        ServedAdapter(name="tone", path=str(folder)),
        ServedAdapter(name="rude", path=str(models / "rude")),
    ]
    small = hot(*adapters, adapter_memory_bytes=room)
    assert not small.model("tone").in_memory
    folder.rename(tmp_path / "away")
    with pytest.raises(UnknownModelError, match="'tone' is not served any more"):
        answer(small, "tone")
    assert names(small) == ["base", "rude"]
    assert "is not a committed folder" in small.refused["tone"]
    copied(models / "rude", folder)
    wait_until(lambda: "tone" in names(small))
    assert not small.refused
    assert answer(small, "tone") == answer(server.service, "rude")


def test_a_path_that_no_file_can_have_is_refused_alone(
    hot: Callable[..., InferenceService], models: Path, listed: Path
) -> None:
    publish(listed, odd=ServedAdapter(name="odd", path="/a\0b"), tone=models / "formal")
    service = hot()
    assert names(service) == ["base", "tone"]
    assert "embedded null byte" in service.refused["odd"]
    publish(listed, odd=ServedAdapter(name="odd", path="/a\0b"), other=models / "rude")
    wait_until(lambda: names(service) == ["base", "other"])


def test_adapters_that_cannot_be_applied_do_not_keep_the_server_from_starting(
    hot: Callable[..., InferenceService], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AdapterRegistry, "apply", surprising)
    service = hot()
    assert names(service) == ["base"]
    assert service.adapter_list_problem == "the adapters could not be applied: KeyError: 'surprise'"


def test_rank_and_size_are_bounded(hot: Callable[..., InferenceService], models: Path) -> None:
    adapters = [ServedAdapter(name=name, path=str(models / name)) for name in ("formal", "rude")]
    service = hot(*adapters, max_lora_rank=4)
    assert service.refused == {"rude": "adapter_config.json has rank 8; this server allows 4 or less"}
    tight = hot(*adapters, adapter_memory_bytes=100)
    assert all("this server has 100 bytes for all adapters" in reason for reason in tight.refused.values())
    assert names(tight) == ["base"]


@pytest.mark.parametrize(
    ("content", "words"),
    [("[", "not valid JSON"), ("[]", "expected an object"), ('{"adapters": 1}', "expected a list")],
)
def test_a_list_that_is_none_says_why(listed: Path, content: str, words: str) -> None:
    listed.write_text(content)
    with pytest.raises(AdapterListError, match=words):
        read_adapter_list(listed)


def test_a_list_behind_links_is_followed(tmp_path: Path, models: Path, hot: Callable[..., InferenceService]) -> None:
    """A ConfigMap volume: the file is a link into `..data`, which is a link to a folder that is exchanged whole."""
    volume = tmp_path / "volume"
    for number, adapters in enumerate(({}, {"tone": models / "formal"})):
        (volume / f"..{number}").mkdir(parents=True)
        publish(volume / f"..{number}" / "adapters.json", **adapters)
    (volume / "..data").symlink_to("..0")
    (volume / "adapters.json").symlink_to("..data/adapters.json")
    service = hot(adapters_path=volume / "adapters.json")
    (volume / "..data_tmp").symlink_to("..1")
    os.replace(volume / "..data_tmp", volume / "..data")  # noqa: PTH105 - what kubelet does
    wait_until(lambda: "tone" in names(service))
