"""What the API server itself refuses: broken specs with exact messages, and edits of what must not change."""

import pytest

from lab.kubernetes.api import ApiError
from support.cluster.api import Api, Raw
from support.cluster.fake_endpoint import FINGERPRINT
from support.cluster.world import World
from support.objects.factories import a_finetune_job, an_inference_service

LONG = "x" * 600


def refusal(api: Api, plural: str, manifest: Raw) -> str:
    path = api.path(plural, manifest["metadata"]["namespace"]) + "?dryRun=All"
    with pytest.raises(ApiError) as caught:
        api.client.post(path, manifest)
    assert caught.value.status == 422, caught.value
    return str(caught.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"model": None}, "spec.model: Required value"),
        ({"model": {"source": "s3://bucket/key"}}, "use pvc://CLAIM/PATH or hf://ORG/NAME"),
        ({"model": {"source": "pvc://models/../../etc"}}, "a source cannot contain '..'"),
        ({"model": {"source": "pvc://Models/a"}}, "malformed source"),
        ({"model": {"source": "pvc://models/" + LONG}}, "spec.model.source"),
        ({"model": {"source": "hf://org/name", "revision": "-x"}}, "spec.model.revision"),
        ({"dataset": {}}, "set exactly one of inline, source and sources"),
        ({"dataset": {"inline": "x", "source": "configmap://a/b"}}, "set exactly one of inline, source and sources"),
        ({"dataset": {"source": "hf://a/b", "sources": [{"source": "hf://a/b"}]}}, "exactly one of inline, source and"),
        ({"dataset": {"sources": [{"source": "hf://a/b?split=a b"}]}}, "malformed source"),
        ({"dataset": {"sources": [{"source": "hf://a/b", "weight": 0}]}}, "spec.dataset.sources[0].weight"),
        ({"dataset": {"sources": []}}, "spec.dataset.sources"),
        ({"dataset": {"inline": "x", "maxRows": 0}}, "spec.dataset.maxRows"),
        ({"model": {"source": "hf://a/b?split=train"}}, "malformed source"),
        ({"dataset": {"source": "ftp://host/rows.jsonl"}}, "use pvc://CLAIM/PATH or configmap://NAME/KEY"),
        ({"dataset": {"source": "http://host/rows.jsonl"}}, "or https://HOST/PATH"),
        ({"dataset": {"source": "https://host/rows.jsonl?token=secret"}}, "malformed source"),
        ({"dataset": {"source": "s3://Bucket/rows.jsonl"}}, "malformed source"),
        ({"dataset": {"inline": "x" * 131_073}}, "spec.dataset.inline"),
        ({"dataset": {"inline": "x", "format": "xml"}}, "spec.dataset.format: Unsupported value"),
        ({"evaluation": {}}, "set exactly one of fraction, inline and source"),
        ({"evaluation": {"fraction": 0.2, "inline": "x"}}, "set exactly one of fraction, inline and source"),
        ({"evaluation": {"fraction": 0.9}}, "spec.evaluation.fraction"),
        ({"continueFrom": {}}, "set exactly one of finetuneJob and source"),
        ({"continueFrom": {"finetuneJob": "a", "source": "pvc://a/b"}}, "set exactly one of finetuneJob and source"),
        ({"continueFrom": {"source": "hf://org/name"}}, "use pvc://CLAIM/PATH"),
        ({"continueFrom": {"finetuneJob": "other/tone"}}, "spec.continueFrom.finetuneJob"),
        ({"method": {"lora": {"rank": 0}}}, "spec.method.lora.rank"),
        ({"method": {"lora": {"rank": 257}}}, "spec.method.lora.rank"),
        ({"method": {"lora": {"dropout": 1}}}, "spec.method.lora.dropout"),
        ({"method": {"lora": {"targetModules": []}}}, "spec.method.lora.targetModules"),
        ({"method": {"lora": {"targetModules": ["a b"]}}}, "spec.method.lora.targetModules[0]"),
        ({"hyperparameters": {"epochs": 1, "maxSteps": 1}}, "set at most one of epochs and maxSteps"),
        ({"hyperparameters": {"learningRate": 0}}, "spec.hyperparameters.learningRate"),
        ({"hyperparameters": {"learningRate": "fast"}}, "spec.hyperparameters.learningRate"),
        ({"hyperparameters": {"batchSize": 0}}, "spec.hyperparameters.batchSize"),
        ({"hyperparameters": {"seed": -1}}, "spec.hyperparameters.seed"),
        ({"checkpoint": {"everySteps": 0}}, "spec.checkpoint.everySteps"),
        ({"resources": {"memory": "lots"}}, "spec.resources.memory"),
        ({"resources": {"gpu": -1}}, "spec.resources.gpu"),
        ({"policy": {"maxAttempts": 0}}, "spec.policy.maxAttempts"),
        ({"policy": {"startDeadlineSeconds": 1}}, "spec.policy.startDeadlineSeconds"),
        ({"output": {"claim": "../x"}}, "spec.output.claim"),
        ({"output": {"adapterName": "Tone"}}, "spec.output.adapterName"),
        ({"serve": {"replicas": 0}}, "spec.serve.replicas"),
        ({"serve": {}, "ttlSecondsAfterFinished": 1}, "ttlSecondsAfterFinished would remove the endpoint"),
        ({"serve": {"into": "chat", "name": "tone"}}, "set one of them"),
        ({"serve": {"gate": {}}, "evaluation": {"fraction": 0.1}}, "gate compares with the served version"),
        ({"serve": {"into": "chat", "gate": {}}}, "serve.gate compares evaluations, so it needs evaluation"),
        ({"serve": {"into": "chat", "gate": {"metric": "bleu"}}}, "spec.serve.gate.metric: Unsupported value"),
        ({"queueName": "Team A"}, "spec.queueName"),
    ],
)
def test_a_broken_spec_is_refused_with_the_field_and_the_remedy(api: Api, spec: Raw, words: str) -> None:
    assert words in refusal(api, "finetunejobs", a_finetune_job("tone", "default", **spec))


def test_a_dataset_of_several_sources_is_accepted(api: Api) -> None:
    sources = [{"source": f"hf://org/rows@v{n}?config=en/x&split=train_sft"} for n in range(15)]
    spec = {"dataset": {"sources": [*sources, {"source": "hf://org/rows?split=a&config=b", "weight": 0.5}]}}
    manifest = a_finetune_job("tone", "default", **spec)
    created = api.client.post(api.path("finetunejobs", "default") + "?dryRun=All", manifest)
    assert created["spec"]["dataset"]["shuffle"] is True
    assert created["spec"]["dataset"]["sources"][0]["weight"] == 1


@pytest.mark.parametrize("name", ["x" * 51, "with.dots", "1-starts-with-a-digit"])
def test_a_name_that_cannot_become_a_services_name_is_refused(api: Api, name: str) -> None:
    assert "metadata" in refusal(api, "finetunejobs", a_finetune_job(name, "default"))
    assert "metadata" in refusal(api, "inferenceservices", an_inference_service(name, "default"))


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        ([{"name": "a", "source": "pvc://one/a"}, {"name": "b", "source": "pvc://two/b"}], "on the same claim"),
        ([{"name": "a", "source": "hf://org/a"}], "use pvc://CLAIM/PATH"),
        ([{"name": "a", "source": "pvc://one/a"}, {"name": "a", "source": "pvc://one/b"}], "Duplicate value"),
        ([{"name": "a", "source": "pvc://one/a", "digest": "md5:0"}], "digest"),
        ([{"name": f"a{n}", "source": "pvc://one/a"} for n in range(33)], "Too many"),
    ],
)
def test_adapters_that_cannot_be_served_together_are_refused(api: Api, adapters: list[Raw], words: str) -> None:
    manifest = an_inference_service("chat", "default", adapters=adapters)
    assert words in refusal(api, "inferenceservices", manifest)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"adapterClaim": "two", "adapters": [{"name": "a", "source": "pvc://one/a"}]}, "must be on adapterClaim"),
        ({"adaptersFrom": "Anybody"}, "spec.adaptersFrom: Unsupported value"),
        ({"autoscaling": {"minReplicas": 3, "maxReplicas": 2}}, "must not be greater than maxReplicas"),
        ({"autoscaling": {}}, "spec.autoscaling.maxReplicas: Required value"),
        ({"rollout": {"mode": "Cold"}}, "spec.rollout.mode: Unsupported value"),
        ({"mergeAdapter": True, "adapters": [{"name": "a", "source": "pvc://one/a"}]}, "set rollout.mode to Rolling"),
        ({"mergeAdapter": True, "rollout": {"mode": "Rolling"}}, "mergeAdapter needs exactly one adapter; list one"),
    ],
)
def test_a_broken_service_is_refused_with_the_field_and_the_remedy(api: Api, spec: Raw, words: str) -> None:
    assert words in refusal(api, "inferenceservices", an_inference_service("chat", "default", **spec))


def test_unknown_fields_are_named_when_validation_is_strict(api: Api) -> None:
    manifest = a_finetune_job("tone", "default", podTemplate={"hostNetwork": True})
    path = api.path("finetunejobs", "default") + "?dryRun=All&fieldValidation=Strict"
    with pytest.raises(ApiError, match="podTemplate"):
        api.client.post(path, manifest)


@pytest.mark.parametrize(
    "edit",
    [
        {"model": {"source": "pvc://models/other"}},
        {"dataset": {"inline": "other"}},
        {"evaluation": {"fraction": 0.1}},
        {"method": {"lora": {"rank": 4}}},
        {"hyperparameters": {"seed": 7}},
        {"policy": {"maxAttempts": 9}},
        {"output": {"adapterName": "other"}},
        {"serve": {}},
        {"queueName": "team"},
    ],
)
def test_what_the_adapter_was_made_from_cannot_be_edited(world: World, edit: Raw) -> None:
    world.submit(suspend=True)
    with pytest.raises(ApiError, match=f"spec.{next(iter(edit))} is immutable"):
        world.edit(**edit)


def test_what_steers_a_job_can_be_edited_and_cancel_cannot_be_taken_back(world: World) -> None:
    world.submit(suspend=True)
    world.edit(ttlSecondsAfterFinished=100_000)
    world.edit(cancel=True)
    with pytest.raises(ApiError, match="cancel cannot be taken back"):
        world.edit(cancel=False)


def test_defaults_are_filled_in_where_users_can_see_them(api: Api) -> None:
    path = api.path("finetunejobs", "default") + "?dryRun=All"
    spec = api.client.post(path, a_finetune_job("tone", "default"))["spec"]
    assert spec["hyperparameters"]["learningRate"] == 0.0002
    assert spec["method"]["lora"]["rank"] == 8
    assert spec["policy"]["maxAttempts"] == 3
    assert "evaluation" not in spec
    assert "serve" not in spec


def test_a_real_fingerprint_fits_the_schema(api: Api) -> None:
    adapter = {
        "name": "a",
        "source": "pvc://one/a",
        "digest": f"sha256:{'0' * 64}",
        "fingerprint": FINGERPRINT.to_dict(),
    }
    path = api.path("inferenceservices", "default") + "?dryRun=All"
    assert api.client.post(path, an_inference_service("chat", "default", adapters=[adapter]))
