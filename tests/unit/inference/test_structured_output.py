"""Answers that are held to a schema: the official client's `parse` against a model that says nothing sensible by itself."""

import concurrent.futures
import json
import queue
import time
from typing import Annotated, Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from finetune_inference.api.errors import to_api_error
from finetune_inference.engine.interface import Failed, Finished, Refused, TokenRequest
from finetune_inference.text.answer_decoder import AnswerDecoder, AnswerRefusedError, TextRules
from finetune_inference.text.grammar import MAX_SCHEMA_BYTES, GrammarError, Grammars
from support.server.running_inference import Running

pytestmark = [pytest.mark.model, pytest.mark.engine]

QUESTION: list[Any] = [{"role": "user", "content": "How do I reset my password?"}]
Word = Annotated[str, Field(max_length=6)]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    name: Word | None


class Ticket(BaseModel):
    team: Literal["billing", "app", "account"]
    urgent: bool
    words: Annotated[list[Word], Field(max_length=3)]
    pet: Cat | Dog


SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}, "team": {"enum": ["billing", "app"]}},
            "required": ["ok", "team"],
            "additionalProperties": False,
        },
    },
}


def asked(schema: Any, *, strict: bool | None = True) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": strict}}


def chat(http: httpx.Client, response_format: Any, **more: Any) -> httpx.Response:
    body = {"model": "base", "messages": QUESTION, "max_tokens": 200, "response_format": response_format} | more
    return http.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("model", ["base", "rude"])
def test_every_answer_is_what_the_schema_says_however_it_is_sampled(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(
        model=model, messages=QUESTION, response_format=Ticket, n=4, temperature=2, seed=3, max_completion_tokens=400
    )
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 4
    tickets = [choice.message.parsed for choice in answer.choices]
    assert all(isinstance(ticket, Ticket) for ticket in tickets)
    assert len({str(ticket) for ticket in tickets}) > 2


def test_a_stream_is_the_same_document(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"model": "formal", "messages": QUESTION, "temperature": 1, "seed": 4, "max_tokens": 400}
    whole = client.chat.completions.parse(response_format=Ticket, **wanted)
    with client.chat.completions.stream(response_format=Ticket, **wanted) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == whole.choices[0].message.parsed
    assert streamed.choices[0].message.content == whole.choices[0].message.content


def test_a_json_object_is_one(client: openai.OpenAI) -> None:
    for seed in range(3):
        answer = client.chat.completions.create(
            model="base",
            messages=QUESTION,
            response_format={"type": "json_object"},
            seed=seed,
            max_tokens=300,
        )
        text = answer.choices[0].message.content or ""
        assert text.startswith("{")
        if answer.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(text), dict)


def test_other_answers_of_the_batch_are_what_they_would_be_alone(client: openai.OpenAI) -> None:
    def free(model: str) -> str | None:
        answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=40)
        return answer.choices[0].message.content

    def held(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model="rude", messages=QUESTION, seed=seed, max_tokens=300, response_format=SCHEMA
        )
        return answer.choices[0].message.content

    alone = {model: free(model) for model in ("base", "formal")}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        documents = [pool.submit(held, seed) for seed in range(8)]
        answers = [(model, pool.submit(free, model)) for model in ("base", "formal") * 4]
        assert all(answer.result() == alone[model] for model, answer in answers)
        assert all(json.loads(document.result() or "")["team"] in ("billing", "app") for document in documents)


def test_log_probabilities_are_the_models_own_not_those_of_what_was_allowed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="base", messages=QUESTION, temperature=0, max_tokens=60, response_format=SCHEMA, logprobs=True
    )
    content = answer.choices[0].logprobs.content if answer.choices[0].logprobs else None
    assert content
    # A model of random weights would not write this by itself: what was allowed alone would have probability 1.
    assert content[0].token == "{"
    assert content[0].logprob < -1


def test_temperature_bias_and_stop_texts_work_inside_of_what_is_allowed(server: Running, http: httpx.Client) -> None:
    schema = {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 30, "maxItems": 30}
    (comma,) = server.service.model().vocabulary.encode(",")
    answer = chat(http, asked(schema), max_tokens=300, seed=1, logit_bias={str(comma): 100})
    values = json.loads(answer.json()["choices"][0]["message"]["content"])
    assert len(values) == 30
    stopped = chat(http, asked(schema), max_tokens=300, seed=1, stop=["x"]).json()["choices"][0]
    assert "x" not in stopped["message"]["content"]
    assert stopped["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "text"}, "Invalid type: text"),
        ({"$ref": "#/nowhere"}, "'/nowhere' does not exist"),
        ({"$ref": "http://example.com/schema"}, "does not fetch"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "integer", "multipleOf": 99999989}, "too fine"),
        ({"type": "number", "multipleOf": 0.99999989}, "too fine"),
        ({"allOf": [{"multipleOf": 997, "type": "integer"}, {"multipleOf": 991}]}, "too fine"),
        ({"enum": ["a" * MAX_SCHEMA_BYTES]}, f"use {MAX_SCHEMA_BYTES} or less"),
        ({"enum": []}, "schema"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_a_400_with_the_reason(http: httpx.Client, schema: Any, words: str) -> None:
    answer = chat(http, asked(schema), seed=0, temperature=2, max_tokens=300)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["param"] == "response_format"


class Breaking:
    """Allows one and the same token, and finds after some that it was too much."""

    allowed = bytes([0] * 8 + [1])
    complete = False

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def consume(self, token: int) -> None:
        self.tokens -= 1
        if not self.tokens:
            raise GrammarError("too many expressions")

    def copy(self) -> "Breaking":
        return Breaking(self.tokens)


def test_an_answer_that_cannot_be_held_to_its_schema_any_more_fails_alone_and_is_no_error_of_the_server(
    server: Running,
) -> None:
    events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    requests = [
        (name, TokenRequest(prompt=[5, 6, 7], adapter=None, max_tokens=10, constraint=constraint))
        for name, constraint in (("breaking", Breaking(3)), ("free", None))
    ]
    server.service.submit([(request, lambda event, name=name: events.put((name, event))) for name, request in requests])
    seen: dict[str, list[Any]] = {"breaking": [], "free": []}
    while not all(s and isinstance(s[-1], Finished | Failed) for s in seen.values()):
        name, event = events.get(timeout=30)
        seen[name].append(event)
    assert len(seen["breaking"]) == 3
    assert seen["breaking"][-1] == Refused("too many expressions")
    assert isinstance(seen["free"][-1], Finished)
    with pytest.raises(AnswerRefusedError) as caught:
        AnswerDecoder(server.service.model().vocabulary, TextRules()).feed(seen["breaking"][-1])
    assert (to_api_error(caught.value).status, to_api_error(caught.value).param) == (400, "response_format")


def test_what_cannot_be_enforced_is_passed_over_only_if_the_request_is_not_strict(http: httpx.Client) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2, "uniqueItems": True}
    assert chat(http, asked(schema)).status_code == 400
    for strict in (False, None):
        answer = chat(http, asked(schema, strict=strict))
        assert isinstance(json.loads(answer.json()["choices"][0]["message"]["content"]), list)


@pytest.mark.parametrize("wanted", [{}, {"type": "xml"}, {"type": "json_schema"}, "json", [], {"type": None}])
def test_a_format_that_does_not_exist_is_a_400(http: httpx.Client, wanted: Any) -> None:
    answer = chat(http, wanted)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"


def test_no_schema_takes_long(server: Running) -> None:
    """Those that are slowest of what is allowed, on a thread that no other request waits for."""
    grammars = server.service.model().vocabulary.grammars
    slow: list[dict[str, Any]] = [
        {"type": "object", "properties": {f"k{i}": {} for i in range(2200)}},
        {"type": "array", "items": {"enum": [f"v{i}" for i in range(3000)]}},
        {"allOf": [{"anyOf": [{"const": j} for j in range(20)]} for _ in range(10)]},
        {"allOf": [{"type": "string", "pattern": f"^(a|b)*{c}(a|b){{30}}$"} for c in "aab"]},
        {"type": "integer", "multipleOf": 9973},
        {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 2}}, "$ref": "#/$defs/a"},
    ]
    for schema in slow:
        started = time.process_time()
        try:
            grammars.compile(schema, lenient=False)
        except GrammarError as error:
            assert str(error)
        assert time.process_time() - started < 10, schema


def test_a_tokenizer_that_llguidance_does_not_know_is_an_error_with_a_sentence() -> None:
    with pytest.raises(GrammarError, match="this model's tokenizer"):
        Grammars(object()).compile({"type": "object"}, lenient=False)


def test_a_schema_whose_choices_multiply_is_refused_at_once(server: Running) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(60):
        schema = {"type": "object", "properties": {"a": schema}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}
    with pytest.raises(GrammarError, match="too many alternatives"):
        server.service.model().vocabulary.grammars.compile(schema, lenient=True)
