"""The official client against a real server with a real, tiny model: what a user of the API sees."""

import concurrent.futures
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from finetune_api.fingerprint import Fingerprint, Observation, Probe, Verdict, judge
from support.server.running_inference import verdict_about
from support.server.tampered_adapter import sabotage

pytestmark = [pytest.mark.model, pytest.mark.engine]

MODELS = ["base", "formal", "rude"]
QUESTION: list[Any] = [{"role": "user", "content": "How do I reset my password?"}]


@pytest.fixture(scope="module")
def reference(models: Path) -> "Reference":
    return Reference(models)


class Reference:
    """The same models, run by transformers and peft without any of our code."""

    def __init__(self, models: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(models / "base")
        self.models: dict[str, Any] = {"base": AutoModelForCausalLM.from_pretrained(models / "base").eval()}
        for name in ("formal", "rude"):
            base = AutoModelForCausalLM.from_pretrained(models / "base")
            self.models[name] = PeftModel.from_pretrained(base, models / name).eval()

    def chat_ids(self, messages: Any) -> list[int]:
        ids: list[int] = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return ids

    def generate(self, model: str, ids: list[int], max_tokens: int) -> list[int]:
        import torch

        prompt = torch.tensor([ids])
        output = self.models[model].generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_tokens, do_sample=False
        )
        answer: list[int] = output[0, len(ids) :].tolist()
        return answer

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def logprobs(self, model: str, ids: list[int]) -> list[float]:
        """Of every token but the first, from one forward pass without a cache."""
        import torch

        with torch.inference_mode():
            logits = self.models[model](input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
        scores = logits.double().log_softmax(-1)
        return [float(row[token]) for row, token in zip(scores, ids[1:], strict=True)]


@pytest.mark.parametrize("model", MODELS)
def test_greedy_chats_are_those_of_transformers_generate(
    client: openai.OpenAI, reference: Reference, model: str
) -> None:
    ids = reference.chat_ids(QUESTION)
    expected = reference.generate(model, ids, 40)
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_completion_tokens=40)
    assert answer.choices[0].message.content == reference.text(expected)
    assert answer.usage and answer.usage.prompt_tokens == len(ids)
    assert answer.usage.completion_tokens == len(expected)
    assert answer.model == model
    assert answer.choices[0].finish_reason == ("length" if len(expected) == 40 else "stop")


def test_base_and_adapters_answer_differently(client: openai.OpenAI) -> None:
    answers = {
        client.chat.completions.create(model=m, messages=QUESTION, temperature=0, max_tokens=30)
        .choices[0]
        .message.content
        for m in MODELS
    }
    assert len(answers) == 3


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=40)
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=QUESTION,
            temperature=0,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(bool(piece) for piece in pieces) > 5
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert not chunks[-1].choices
    assert chunks[-1].usage == whole.usage


def test_streams_are_server_sent_events_that_end_with_done(http: httpx.Client) -> None:
    body = {"model": "base", "prompt": "Paris", "max_tokens": 3, "stream": True}
    answer = http.post("/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    assert all('"usage"' not in event for event in events)


def test_completions_take_every_form_of_prompt(client: openai.OpenAI, reference: Reference) -> None:
    texts = ["Paris is", "Where is my order?"]
    ids = [reference.tokenizer(text)["input_ids"] for text in texts]
    expected = [reference.text(reference.generate("formal", i, 8)) for i in ids]

    def complete(prompt: Any) -> list[str]:
        answer = client.completions.create(model="formal", prompt=prompt, temperature=0, max_tokens=8)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    assert complete(texts[0]) == complete(ids[0]) == expected[:1]
    assert complete(texts) == complete(ids) == expected


def test_an_echo_is_the_prompt_and_the_answer(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="base", prompt="Paris is", temperature=0, max_tokens=5)
    echoed = client.completions.create(model="base", prompt="Paris is", temperature=0, max_tokens=5, echo=True)
    assert echoed.choices[0].text == "Paris is" + plain.choices[0].text
    chunks = client.completions.create(
        model="base", prompt="Paris is", temperature=0, max_tokens=5, echo=True, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == echoed.choices[0].text


@pytest.mark.parametrize("model", MODELS)
def test_echoed_log_probabilities_are_those_of_a_direct_forward_pass(
    client: openai.OpenAI, reference: Reference, model: str
) -> None:
    # Longer than a slice of the engine, so that the seams between slices are covered as well.
    ids = [3 + i * 7 % 250 for i in range(300)]
    answer = client.completions.create(model=model, prompt=ids, max_tokens=0, echo=True, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.tokens and logprobs.token_logprobs and logprobs.top_logprobs and logprobs.text_offset
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    assert logprobs.token_logprobs[1:] == pytest.approx(reference.logprobs(model, ids), abs=2e-5)
    assert len(logprobs.tokens) == len(logprobs.text_offset) == len(logprobs.top_logprobs) == len(ids)
    text = answer.choices[0].text
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    assert all(
        text.startswith(token, offset)
        for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True)
        if "\N{REPLACEMENT CHARACTER}" not in token and not token.startswith("<|")
    )
    for token, score, top in zip(
        logprobs.tokens[1:], logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True
    ):
        # The token itself is there, beside the two likeliest, none of which is less likely than it by being first.
        assert token in top
        assert max(top.values()) >= score - 1e-6
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage and answer.usage.completion_tokens == 0


def test_generated_log_probabilities_are_those_of_scoring_the_answer_afterwards(
    client: openai.OpenAI, reference: Reference
) -> None:
    chat = client.chat.completions.create(
        model="rude", messages=QUESTION, max_tokens=10, seed=5, logprobs=True, top_logprobs=3
    )
    content = chat.choices[0].logprobs.content if chat.choices[0].logprobs else None
    assert content
    assert all(len(token.top_logprobs) == 3 for token in content)
    # A token may be a part of a character; all bytes together are the text.
    assert (
        b"".join(bytes(token.bytes or []) for token in content).decode(errors="replace")
        == chat.choices[0].message.content
    )
    assert all(bytes(token.bytes or []).decode(errors="replace") == token.token for token in content)
    completion = client.completions.create(
        model="rude", prompt=reference.chat_ids(QUESTION), max_tokens=10, seed=5, echo=True, logprobs=0
    )
    scores = completion.choices[0].logprobs.token_logprobs if completion.choices[0].logprobs else None
    assert scores
    assert scores[-len(content) :] == pytest.approx([token.logprob for token in content], abs=1e-4)


def observe(client: openai.OpenAI, model: str, probe: Probe) -> list[float]:
    """What the operator does to verify an adapter."""
    answer = client.completions.create(model=model, prompt=probe.token_ids, max_tokens=0, echo=True, logprobs=0)
    assert answer.choices[0].logprobs and answer.choices[0].logprobs.token_logprobs
    return answer.choices[0].logprobs.token_logprobs[probe.prompt_tokens :]


def take_fingerprint(reference: Reference, tuned: str) -> Fingerprint:
    prompt = reference.chat_ids(QUESTION)
    ids = prompt + reference.generate(tuned, prompt, 12)
    scores = {m: reference.logprobs(m, ids)[len(prompt) - 1 :] for m in (tuned, "base")}
    return Fingerprint(
        probes=[Probe(token_ids=ids, prompt_tokens=len(prompt), tuned=scores[tuned], base=scores["base"])]
    )


@pytest.mark.parametrize("model", ["formal", "rude"])
def test_a_replayed_fingerprint_matches_its_adapter_and_no_other(
    client: openai.OpenAI, reference: Reference, model: str
) -> None:
    fingerprint = take_fingerprint(reference, model)
    probe = fingerprint.probes[0]
    other = "rude" if model == "formal" else "formal"

    def verdict(name: str) -> Verdict:
        return judge(fingerprint, [Observation(observe(client, name, probe), observe(client, "base", probe))])[0]

    assert verdict(model) is Verdict.MATCHED
    assert verdict("base") is Verdict.NO_EFFECT
    assert verdict(other) is Verdict.INCOMPATIBLE


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("zeroed", Verdict.NO_EFFECT),
        ("halved", Verdict.INCOMPATIBLE),
        ("random", Verdict.INCOMPATIBLE),
        (None, Verdict.MATCHED),
    ],
)
def test_a_tampered_adapter_is_not_verified(
    models: Path, reference: Reference, tmp_path: Path, how: str | None, expected: Verdict
) -> None:
    folder = models / "rude"
    if how:
        sabotage(models / "rude", tmp_path / "tampered", how)
        folder = tmp_path / "tampered"
    assert verdict_about(models / "base", folder, take_fingerprint(reference, "rude")) is expected


def test_concurrent_requests_for_different_models_do_not_mix(client: openai.OpenAI, reference: Reference) -> None:
    ids = reference.chat_ids(QUESTION)
    expected = {m: reference.text(reference.generate(m, ids, 20)) for m in MODELS}

    def ask(model: str) -> tuple[str, str | None]:
        answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=20)
        return model, answer.choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, MODELS * 8))
    assert all(answer == expected[model] for model, answer in answers)


def test_a_seed_makes_sampling_repeatable_and_its_absence_does_not(client: openai.OpenAI) -> None:
    def sample(seed: int | openai.Omit) -> str:
        answer = client.completions.create(model="base", prompt="Paris", temperature=1.5, max_tokens=20, seed=seed)
        return answer.choices[0].text

    assert sample(7) == sample(7)
    assert len({sample(openai.omit) for _ in range(4)}) > 1


def test_n_answers_are_different_and_their_tokens_are_added_up(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="base", messages=QUESTION, n=3, seed=1, temperature=1.5, max_tokens=15, stop=["\u0000"]
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.usage and answer.usage.completion_tokens <= 45


def test_an_answer_ends_before_its_stop_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="base", prompt="Paris is", temperature=0, max_tokens=30).choices[0].text
    stop = whole[10:13]
    for stream in (False, True):
        answer: Any = client.completions.create(
            model="base", prompt="Paris is", temperature=0, max_tokens=30, stop=[stop, "never"], stream=stream
        )
        parts = list(answer) if stream else [answer]
        assert "".join(part.choices[0].text for part in parts) == whole[: whole.index(stop)]
        assert parts[-1].choices[0].finish_reason == "stop"


def test_a_logit_bias_forces_a_token(client: openai.OpenAI, reference: Reference) -> None:
    (token,) = reference.tokenizer("x")["input_ids"]
    answer = client.completions.create(
        model="base", prompt="Paris", max_tokens=5, temperature=0, logit_bias={str(token): 100}
    )
    assert answer.choices[0].text == "xxxxx"


def test_models_are_the_base_and_its_adapters(client: openai.OpenAI, models: Path) -> None:
    listed = {model.id: model.model_dump() for model in client.models.list()}
    assert sorted(listed) == MODELS
    assert listed["base"]["parent"] is None
    assert listed["formal"]["parent"] == "base"
    assert listed["formal"]["root"] == str(models / "formal")
    assert client.models.retrieve("rude").id == "rude"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    for call in (
        lambda: client.chat.completions.create(model="gpt-9", messages=QUESTION),
        lambda: client.completions.create(model="gpt-9", prompt="a", stream=True),
        lambda: client.models.retrieve("gpt-9"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "model_not_found"
        assert "base, formal, rude" in caught.value.message


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"messages": QUESTION}, "missing_required_parameter"),
        ({"model": "base", "messages": "hi"}, "invalid_type"),
        ({"model": "base", "messages": QUESTION, "temperature": 3}, "invalid_value"),
        ({"model": "base", "messages": QUESTION, "top_logprobs": 3}, "invalid_value"),
    ],
)
def test_codes_of_errors_are_those_of_openai(http: httpx.Client, body: dict[str, Any], code: str) -> None:
    answer = http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_every_answer_has_an_id_that_the_client_can_report(client: openai.OpenAI, http: httpx.Client) -> None:
    answers = [client.completions.create(model="base", prompt="Paris", max_tokens=1) for _ in range(2)]
    ids = {answer._request_id for answer in answers}
    assert len(ids) == 2
    assert all(each and each.startswith("req_") for each in ids)
    for refused in (http.post("/v1/completions", content=b"{"), http.get("/v1/nothing")):
        assert refused.headers["x-request-id"].startswith("req_")


def test_the_system_fingerprint_says_which_weights_answered(client: openai.OpenAI) -> None:
    def fingerprint(model: str) -> str | None:
        return client.chat.completions.create(model=model, messages=QUESTION, max_tokens=1).system_fingerprint

    assert len({fingerprint(model) for model in MODELS}) == 3
    assert fingerprint("base") == fingerprint("base")
    chunks = client.completions.create(model="base", prompt="Paris", max_tokens=2, stream=True)
    assert {chunk.system_fingerprint for chunk in chunks} == {fingerprint("base")}


def test_a_prompt_that_is_too_long_says_by_how_much(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="base", prompt=[5] * 500, max_tokens=13)
    assert caught.value.code == "context_length_exceeded"
    assert "512 tokens, but 513" in caught.value.message
    client.completions.create(model="base", prompt=[5] * 500, max_tokens=12)


ONLY_TEXT = "messages[0].content[0]: is a part of type 'image_url', expected {type: text, text}"


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages", "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", ONLY_TEXT),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None, ""),
        ({"temperature": 3}, "temperature", "2 or less"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens: use 1 or more"),
        ({"max_tokens": 100_000}, "max_tokens", "4096 or less"),
        ({"n": 100}, "n", "32 answers"),
        ({"max_completion_tokens": 100_000}, "max_completion_tokens", "max_completion_tokens is 100000"),
        ({"messages": [{"role": "user"}]}, "messages", "messages[0].content: is null, expected text"),
        ({"messages": [{"role": "assistant"}]}, "messages", "messages[0].content: is null, expected text"),
        (
            {"messages": [{"role": "user", "content": "a", "prefix": True}]},
            "messages",
            "messages[0].prefix: has no meaning",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools", "tools[0].type: is 'web_search', expected function"),
        ({"tool_choice": "required"}, "tool_choice", "requires a call, but tools has no function"),
        ({"functions": [{"name": "f"}]}, "functions", "functions: not supported"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs to true"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "set stream to true"),
        ({"logit_bias": {"100000": 1}}, "logit_bias", "does not exist"),
        ({"stop": [""]}, "stop", "at least 1 character"),
        ({"seed": 2**63}, "seed", "or less"),
    ],
)
def test_an_invalid_value_is_a_400_that_names_the_field(
    http: httpx.Client, change: dict[str, Any], param: str | None, words: str
) -> None:
    body = {"model": "base", "messages": QUESTION, "max_tokens": 2} | change
    # Not httpx's own encoder, which refuses half a surrogate pair.
    answer = http.post("/v1/chat/completions", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    if param:
        assert error["param"] == param


@pytest.mark.parametrize(
    "prompt", [[], [[]], "", [""], [0, 10**6], [-1], [1, "a"], {"a": 1}, None, [[1], "a"], [True], 5, [1.5]]
)
def test_a_prompt_is_used_or_refused(http: httpx.Client, prompt: Any) -> None:
    answer = http.post("/v1/completions", json={"model": "base", "prompt": prompt, "max_tokens": 1})
    # An empty text begins with the model's own first token, as OpenAI's does.
    assert answer.status_code == (200 if prompt in ("", [""]) else 400)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 5000, b'{"model": NaN}', b"1" * 5000, b"null", b'"a"'])
def test_a_body_that_is_no_request_is_a_400(http: httpx.Client, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_too_long_is_refused_before_it_is_read(http: httpx.Client) -> None:
    assert http.post("/v1/completions", content=b" " * (5 << 20)).status_code == 413

    def chunks() -> Any:
        for _ in range(80):
            yield b" " * (1 << 16)

    assert http.post("/v1/completions", content=chunks()).status_code == 413


def test_unknown_routes_answer_in_the_same_shape(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").json()["error"]["message"] == "Not Found"
    assert http.get("/v1/completions").status_code == 405


def test_metrics_count_requests_and_tokens(http: httpx.Client) -> None:
    def value(line: str) -> float:
        text = http.get("/metrics").text
        return next((float(row.split()[-1]) for row in text.splitlines() if row.startswith(line + " ")), 0.0)

    tokens = 'finetune_inference_completion_tokens_total{model="rude"}'
    requests = 'finetune_inference_requests_total{route="/v1/completions",status="200"}'
    gaps = 'finetune_inference_inter_token_seconds_count{model="rude"}'
    before = value(tokens), value(requests), value(gaps)
    http.post("/v1/completions", json={"model": "rude", "prompt": "Paris", "max_tokens": 4, "temperature": 0})
    assert value(tokens) == before[0] + 4
    assert value(requests) == before[1] + 1
    assert value(gaps) == before[2] + 3
    assert value("finetune_inference_cached_tokens") == 0
    assert value("finetune_inference_ready") == 1
