"""Many sequences in one batch: each must get the tokens it would get alone, whoever its neighbors are."""

import gc
import random
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig
from finetune_inference.adapters.verification import AdapterRefusedError, Limits, verify
from finetune_inference.backends.engines import ENGINES
from finetune_inference.config import Settings
from finetune_inference.engine.interface import Event, Failed, Finished, Generated, PromptScored, Sampling, TokenRequest
from lab.fixtures.tiny_adapter import commit, copied
from lab.fixtures.tiny_model import LINES
from support.server.engine_under_test import ENGINE, refusals

pytestmark = [pytest.mark.model, pytest.mark.engine]

PROMPTS = 64
MOST_STEPS = 3000
"""Far more than any of these tests takes."""
GREEDY = Sampling(temperature=0)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all-linear": {"target_modules": "all-linear", "r": 8, "use_rslora": True},
    "ranks": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "dora": {"use_dora": True},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "o_proj"]},
    "whole-head": {"modules_to_save": ["lm_head"]},
}
SERVED = [name for name in VARIANTS if name not in refusals()]
only_ours = pytest.mark.skipif(ENGINE != "transformers", reason="about the inside of the default engine")


@pytest.fixture(scope="module")
def variants(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of every kind."""
    folder = tmp_path_factory.mktemp("variants")
    for number, (name, lora) in enumerate(VARIANTS.items()):
        make_adapter(folder / name, models / "base", seed=10 + number, **lora)
    return {name: folder / name for name in VARIANTS}


@pytest.fixture(scope="module")
def tuned(variants: dict[str, Path]) -> dict[str, Path]:
    """An adapter of every kind that is served."""
    return {name: variants[name] for name in SERVED}


class Runs:
    """An engine, its adapters, and what comes out of it."""

    def __init__(self, base: Path, tuned: dict[str, Path], **settings: Any) -> None:
        config = ServingConfig(model=ServedModel(name="base", path=str(base)))
        chosen = Settings(threads=1, **settings)
        self.engine = ENGINES[chosen.engine](config, chosen)
        self.engine.load_model()
        self.weights: dict[str | None, Any] = {None: None}
        for name, path in tuned.items():
            self.weights[name] = self.engine.load_adapter(
                verify(ServedAdapter(name=name, path=str(path)), Limits(64, 1 << 30))
            )
        self.events: dict[int, list[Event]] = {}

    def request(self, prompt: list[int], adapter: str | None, max_tokens: int = 24, **more: Any) -> TokenRequest:
        more = {"sampling": GREEDY, **more}
        return TokenRequest(prompt, adapter, max_tokens, weights=self.weights[adapter], **more)

    def add(self, key: int, request: TokenRequest) -> None:
        self.engine.add(key, request)
        self.events[key] = []

    def step(self) -> None:
        for key, event in self.engine.step():
            self.events[key].append(event)

    def finish(self) -> None:
        for _ in range(MOST_STEPS):
            if not self.busy():
                return
            self.step()
        raise AssertionError("the sequences never end")

    def busy(self) -> int:
        return sum(not any(isinstance(e, Finished | Failed) for e in events) for events in self.events.values())

    def run(self, requests: dict[int, TokenRequest]) -> dict[int, list[int]]:
        """Tokens of requests that come in while others are at work."""
        arrivals = random.Random(0)  # noqa: S311 - the same arrivals every time
        waiting = list(requests.items())
        while waiting:
            while waiting and self.busy() < self.engine.capacity and arrivals.random() < 0.6:
                self.add(*waiting.pop(0))
            self.step()
        self.finish()
        return {key: tokens_of(self.events[key]) for key in requests}


def tokens_of(events: list[Event]) -> list[int]:
    return [event.token.token_id for event in events if isinstance(event, Generated)]


@pytest.fixture(scope="module")
def runs(models: Path, tuned: dict[str, Path]) -> Runs:
    return Runs(models / "base", tuned)


@pytest.fixture(scope="module")
def prompts(models: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    # The same prompts every time, none of which comes to two tokens that are equally likely to five digits.
    pick = random.Random(2)  # noqa: S311
    texts = [" ".join(pick.choices(LINES, k=pick.randint(1, 9))) for _ in range(PROMPTS)]
    return [tokenizer(text).input_ids[: pick.randint(1, 300)] for text in texts]


@pytest.fixture(scope="module")
def generate(models: Path, tuned: dict[str, Path]) -> Iterator[Callable[[list[int], str | None, int], list[int]]]:
    """transformers' own greedy `generate` with peft's own adapters, one prompt at a time."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    references: dict[str | None, Any] = {None: AutoModelForCausalLM.from_pretrained(models / "base").eval()}
    for name, path in tuned.items():
        base = AutoModelForCausalLM.from_pretrained(models / "base")
        references[name] = PeftModel.from_pretrained(base, path).eval()

    def answer(prompt: list[int], adapter: str | None, max_tokens: int) -> list[int]:
        with torch.inference_mode():
            output = references[adapter].generate(
                input_ids=torch.tensor([prompt]), max_new_tokens=max_tokens, do_sample=False
            )
        answer: list[int] = output[0, len(prompt) :].tolist()
        end = references[adapter].config.eos_token_id
        return answer[: answer.index(end)] if end in answer else answer

    return answer


def mixed(runs: Runs, prompts: list[list[int]], **more: Any) -> dict[int, TokenRequest]:
    """Every prompt with another adapter in turn, the base among them."""
    names: list[str | None] = [None, *SERVED]
    return {i: runs.request(prompt, names[i % len(names)], **more) for i, prompt in enumerate(prompts)}


def test_64_greedy_answers_of_mixed_adapters_are_those_of_generate(
    runs: Runs, prompts: list[list[int]], generate: Callable[..., list[int]]
) -> None:
    requests = mixed(runs, prompts)
    found = runs.run(requests)
    expected = {key: generate(r.prompt, r.adapter, r.max_tokens) for key, r in requests.items()}
    assert found == expected


@pytest.mark.parametrize("name", SERVED)
def test_every_kind_of_adapter_has_an_effect(
    name: str, prompts: list[list[int]], generate: Callable[..., list[int]]
) -> None:
    assert any(generate(prompt, name, 24) != generate(prompt, None, 24) for prompt in prompts[:4])


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in SERVED])
def test_a_kind_that_the_engine_lacks_is_refused_with_its_reason(
    runs: Runs, variants: dict[str, Path], name: str
) -> None:
    adapter = verify(ServedAdapter(name=name, path=str(variants[name])), Limits(64, 1 << 30))
    with pytest.raises(AdapterRefusedError, match=refusals()[name]):
        runs.engine.load_adapter(adapter)


def test_the_base_is_itself_beside_as_many_adapters_as_fit_in_one_step(
    models: Path, tuned: dict[str, Path], prompts: list[list[int]], generate: Callable[..., list[int]]
) -> None:
    """One adapter more than that is loaded before, so that none of the places for adapters is empty."""
    first, *together = SERVED[:3]
    full = Runs(models / "base", {name: tuned[name] for name in (first, *together)}, max_batched_adapters=len(together))
    names: list[str | None] = [None, *together]
    requests = {i: full.request(prompt[:10], names[i % len(names)]) for i, prompt in enumerate(prompts[:9])}
    for key, request in requests.items():
        full.add(key, request)
    full.step()
    assert [len(tokens_of(full.events[key])) for key in requests] == [1] * len(requests)
    full.finish()
    expected = {key: generate(r.prompt, r.adapter, r.max_tokens) for key, r in requests.items()}
    assert {key: tokens_of(full.events[key]) for key in requests} == expected


def test_a_seeded_answer_does_not_depend_on_its_neighbors(runs: Runs, prompts: list[list[int]]) -> None:
    requests = mixed(runs, prompts[:32], sampling=Sampling(temperature=1.0, top_p=0.9, seed=7, presence_penalty=0.5))
    together = runs.run(requests)
    for key in (0, 7, 13, 31):
        assert runs.run({100: requests[key]})[100] == together[key]


def test_answers_stay_the_same_when_memory_is_short(
    models: Path, tuned: dict[str, Path], prompts: list[list[int]], runs: Runs
) -> None:
    """Sequences make room for older ones and read everything again; nobody notices but the clock."""
    short = Runs(models / "base", tuned, max_cached_tokens=1)
    requests = mixed(short, prompts[:24], max_tokens=40)
    assert short.run(requests) == runs.run(mixed(runs, prompts[:24], max_tokens=40))


def test_a_removed_sequence_makes_room_and_leaves_no_trace(runs: Runs, prompts: list[list[int]]) -> None:
    requests = mixed(runs, prompts[:8])
    expected = runs.run(requests)
    for key, request in requests.items():
        runs.add(key, request)
    for _ in range(5):
        runs.step()
    for key in (0, 3, 6):
        runs.engine.remove(key)
        del runs.events[key]
    runs.finish()
    assert {key: tokens_of(runs.events[key]) for key in (1, 2, 4, 5, 7)} == {k: expected[k] for k in (1, 2, 4, 5, 7)}


def test_a_prompt_is_scored_the_same_in_company(runs: Runs, prompts: list[list[int]]) -> None:
    scored = runs.request(prompts[5], SERVED[3], max_tokens=0, logprobs=2, score_prompt=True)
    runs.run({200: scored})
    (alone,) = [event for event in runs.events[200] if isinstance(event, PromptScored)]
    runs.run({**mixed(runs, prompts[:9]), 201: scored})
    (together,) = [event for event in runs.events[201] if isinstance(event, PromptScored)]
    assert [t.token_id for t in alone.tokens] == prompts[5]
    assert [t.logprob for t in together.tokens[1:]] == pytest.approx([t.logprob for t in alone.tokens[1:]], abs=1e-4)


@only_ours
def test_a_long_prompt_keeps_nobody_waiting(runs: Runs, prompts: list[list[int]]) -> None:
    runs.add(300, runs.request([5] * 480, None, max_tokens=8))
    runs.add(301, runs.request(prompts[0][:20], None, max_tokens=8))
    runs.step()
    assert len(tokens_of(runs.events[301])) == 1
    assert not tokens_of(runs.events[300])
    runs.finish()
    assert len(tokens_of(runs.events[300])) == 8


def test_an_adapter_that_overflows_ends_its_own_sequences_only(
    models: Path, prompts: list[list[int]], runs: Runs, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(models / "formal", tmp_path / "huge")
    weights = load_file(folder / "adapter_model.safetensors")
    huge = {name: tensor * 0 + 3e38 if "lora_A" in name else tensor for name, tensor in weights.items()}
    save_file(huge, folder / "adapter_model.safetensors")
    commit(folder)
    both = Runs(models / "base", {"huge": folder, "formal": models / "formal"})
    for sampling in (GREEDY, Sampling(temperature=1.0, seed=5)):
        requests = {key: both.request(prompts[key], None, sampling=sampling) for key in range(4)}
        expected = runs.run(requests)
        for key in range(4, 8):
            requests[key] = both.request(prompts[key], "huge", sampling=sampling)
        found = both.run(requests)
        assert {key: found[key] for key in expected} == expected
        assert [both.events[key] for key in range(4, 8)] == [
            [Failed("the model computes values that are not finite numbers")]
        ] * 4


@only_ours
def test_a_failure_while_adapters_are_put_together_leaves_nothing_half_done(
    models: Path, tuned: dict[str, Path], prompts: list[list[int]], runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    fresh = Runs(models / "base", tuned)
    cat = torch.cat
    calls: list[object] = []

    def scarce(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("no memory left")
        return cat(*arguments, **options)

    fresh.add(0, fresh.request(prompts[0], "all-linear"))
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(torch, "cat", scarce)
        fresh.step()
    fresh.events.clear()
    found = fresh.run({1: fresh.request(prompts[0], "all-linear")})
    assert found[1] == runs.run({1: runs.request(prompts[0], "all-linear")})[1]


@only_ours
def test_a_model_that_cannot_be_batched_is_served_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bloom has attention of its own, and no positions that could be given to it."""
    import torch
    from transformers import BloomConfig, BloomForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = BloomConfig(
            vocab_size=384, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, tie_word_embeddings=False
        )
        model = BloomForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "bloom")
    make_adapter(tmp_path / "tuned", tmp_path / "bloom", seed=4, target_modules=["query_key_value"])
    runs = Runs(tmp_path / "bloom", {"tuned": tmp_path / "tuned"})
    assert "computes one sequence at a time" in caplog.text
    prompt = [7, 8, 9, 10]
    found = runs.run({0: runs.request(prompt, None), 1: runs.request(prompt, "tuned"), 2: runs.request([3], None)})
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None)
    assert found[0] == expected[0, 4:].tolist()[: len(found[0])]
    assert found[1] != found[0]
    many = {key: runs.request([key + 3] * 300, None, max_tokens=8) for key in range(10, 18)}
    one_by_one = {key: runs.run({key + 100: request})[key + 100] for key, request in many.items()}
    assert runs.run(many) == one_by_one


@only_ours
def test_a_model_whose_positions_depend_on_the_longest_sequence_is_served_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64, "factor": 8.0}
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.3,
        rope_parameters={**rope, "short_factor": [1.0] * 4, "long_factor": [4.0, 8.0, 8.0, 16.0]},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(tmp_path)
    runs = Runs(tmp_path, {})
    assert "rotary embedding is of type longrope" in caplog.text
    short = runs.request([7, 8, 9, 10], None)
    alone = runs.run({0: short})[0]
    assert runs.run({1: runs.request([5] * 200, None), 2: short})[2] == alone


@only_ours
@pytest.mark.parametrize(
    ("rope", "moves"),
    [
        (None, False),
        ({"rope_type": "llama3"}, False),
        ({"rope_type": "dynamic"}, True),
        ({"full_attention": {"rope_type": "longrope"}, "sliding_attention": {"rope_type": "default"}}, True),
    ],
)
def test_positions_that_depend_on_neighbors_are_known_by_their_type(rope: dict[str, Any] | None, moves: bool) -> None:
    from types import SimpleNamespace

    from finetune_inference.backends.transformers.model_check import length_dependent_positions

    text = SimpleNamespace(rope_parameters=rope)
    assert (length_dependent_positions(SimpleNamespace(get_text_config=lambda: text)) is not None) == moves


@only_ours
def test_a_short_context_is_batched_all_the_same(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    from finetune_inference.backends.transformers.engine import TransformersEngine

    config = ServingConfig(model=ServedModel(name="base", path=str(models / "base")), max_model_length=100)
    TransformersEngine(config, Settings(threads=1)).load_model()
    assert "one sequence at a time" not in caplog.text


@only_ours
def test_room_on_a_gpu_is_the_gpu_s(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from finetune_inference.backends.transformers.engine import TransformersEngine

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 << 30, 80 << 30))
    config = ServingConfig(model=ServedModel(name="base", path=str(models / "base")))
    assert TransformersEngine(config, Settings(threads=1)).spare_memory == 3 << 30


@only_ours
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "A packed copy of the weights, for speed, takes "),
        (
            {"engine.spare_memory": lambda: 0},
            "Slower than possible: a packed copy of the weights needs ",
        ),
        (
            {"linear_layers._can_pack": lambda _: False},
            "No packed copy of the weights: this CPU has no product from packed float32 weights.",
        ),
    ],
    ids=["packed", "no memory", "no product"],
)
def test_whether_weights_are_packed_is_said(
    models: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    expected: str,
) -> None:
    from finetune_inference.backends.transformers import engine as transformers_engine

    for name, function in changed.items():
        monkeypatch.setattr(f"finetune_inference.backends.transformers.{name}", function)
    config = ServingConfig(model=ServedModel(name="base", path=str(models / "base")))
    with caplog.at_level("INFO"):
        transformers_engine.TransformersEngine(config, Settings(threads=1, max_cached_tokens=1000)).load_model()
    assert expected in caplog.text


@only_ours
def test_a_model_that_nobody_uses_any_more_leaves_memory(models: Path) -> None:
    runs = Runs(models / "base", {})
    module = weakref.ref(runs.engine._runner._model)
    del runs
    gc.collect()
    assert module() is None


def make_adapter(directory: Path, base: Path, *, seed: int, **lora: Any) -> None:
    """An adapter without a tokenizer, and without the copy of tuned embeddings that peft would add."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    arguments = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], **lora}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**arguments))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name or "lora_embedding_A" in name or "modules_to_save" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    commit(directory)
