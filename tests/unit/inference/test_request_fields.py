"""Every field of a request is served, refused by name, or ignored for a reason: the table, the classes and a real server."""

import itertools
import json
import re
from typing import Any, get_args, get_type_hints

import httpx
import openai
import pytest

from finetune_inference.api.request_fields import FIELDS, ROUTES, Route
from finetune_inference.api.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest
from support.objects.request_bodies import LEAKS
from support.server.running_inference import Running

pytestmark = [pytest.mark.model, pytest.mark.engine]

CLASSES: dict[Route, type[GenerationRequest]] = {"chat": ChatCompletionRequest, "completions": CompletionRequest}
BODIES: dict[Route, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "How do I reset my password?"}]},
    "completions": {"prompt": "Paris is"},
}
BOTH = pytest.mark.parametrize("route", ["chat", "completions"])


def ask(http: httpx.Client, route: Route, model: str = "formal", **fields: Any) -> httpx.Response:
    body = {"model": model, "max_tokens": 8, "temperature": 0} | BODIES[route] | fields
    return http.post(ROUTES[route], json=body, timeout=120)


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def error(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 400, answer.text
    found: dict[str, Any] = answer.json()["error"]
    return found


@BOTH
def test_the_table_serves_what_the_classes_have(route: Route) -> None:
    fields = CLASSES[route].model_fields
    assert {name for name, field in FIELDS[route].items() if field.decision == "served"} == set(fields)


def test_a_field_of_one_route_has_a_decision_on_the_other() -> None:
    """A client that has mixed up the routes reads where the field belongs, not that it is unknown."""
    for fields, others in (FIELDS["chat"], FIELDS["completions"]), (FIELDS["completions"], FIELDS["chat"]):
        assert {name for name, field in fields.items() if field.decision == "served"} - set(others) == set()


@BOTH
def test_every_field_of_openais_client_has_a_decision(route: Route) -> None:
    from openai.types import completion_create_params as of_completions
    from openai.types.chat import completion_create_params as of_chats

    module: Any = of_chats if route == "chat" else of_completions
    theirs = set().union(*(get_type_hints(each) for each in get_args(module.CompletionCreateParams)))
    assert theirs - set(FIELDS[route]) == set()


@BOTH
def test_each_refused_field_is_named_with_its_reason_and_its_neutral_values_are_accepted(
    http: httpx.Client, route: Route
) -> None:
    for field in FIELDS[route].values():
        if field.decision != "refused":
            continue
        found = error(ask(http, route, **{field.name: {"some": ["value"]}}))
        assert found["message"] == f"{field.name}: not supported: {field.reason}"
        assert found["param"] == field.name
    neutral = {f.name: (*f.neutral, None)[0] for f in FIELDS[route].values() if f.decision == "refused"}
    ignored = {f.name: {"any": "value"} for f in FIELDS[route].values() if f.decision == "ignored"}
    assert text(ask(http, route, **neutral, **ignored)) == text(ask(http, route))


@BOTH
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temprature": 1}, "temprature: unknown field; did you mean temperature?"),
        ({"zzz": None}, "zzz: unknown field"),
        ({"n_predict": 5}, "n_predict: not supported: use max_tokens"),
        ({"stream": True, "stream_options": {"include_usages": 1}}, "did you mean include_usage?"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema: unknown field"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp: unknown field; did you mean regex?"),
        ({"structured_outputs": {}}, "structured_outputs: expected one of json, json_object, regex, choice, grammar"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "found regex, choice"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "response_format is set as well"),
        ({"guided_json": "{"}, "guided_json: expected a JSON schema"),
        ({"guided_regex": "("}, "guided_regex: the pattern cannot be used"),
        ({"guided_regex": "((a{1000}){1000}){1000}"}, "guided_regex: the pattern's repetitions multiply"),
        ({"guided_choice": []}, "guided_choice: expected at least 1 item"),
        ({"guided_grammar": "nothing"}, "guided_grammar: the grammar cannot be used: neither Lark nor GBNF"),
        ({"guided_grammar": 'start: %json {"type": "integer"}'}, "%json is not supported"),
        ({"min_tokens": 9}, "min_tokens is 9, but the answer has at most 8"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids: token id 1000000 does not exist"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens: use 1 or more, or -1"),
        ({"top_k": -2}, "top_k: expected -1 or more, found -2"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected more than 0, found 0"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_sentence(
    http: httpx.Client, route: Route, fields: dict[str, Any], message: str
) -> None:
    assert message in error(ask(http, route, **fields))["message"]


@BOTH
def test_the_form_of_an_answer_is_kept_on_both_routes(http: httpx.Client, route: Route) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    asked = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for fields in (
        {"response_format": asked},
        {"guided_json": schema},
        {"guided_json": json.dumps(schema)},
        {"structured_outputs": {"json": schema}},
    ):
        assert json.loads(text(ask(http, route, max_tokens=300, **fields)))["ok"] in (True, False)
    for kind, wanted, allowed in (
        ("regex", "[0-9]{2}-[ab]", None),
        ("choice", ["yes", 'n"o\\', "ñ"], ["yes", 'n"o\\', "ñ"]),
        ("grammar", 'start: "left" | "right"', ["left", "right"]),
        ("grammar", 'root ::= "left" | "right"', ["left", "right"]),
    ):
        for fields in ({f"guided_{kind}": wanted}, {"structured_outputs": {kind: wanted}}):
            for seed in range(3):
                given = text(ask(http, route, max_tokens=40, seed=seed, temperature=2, **fields))
                assert given in allowed if allowed else len(given) == 4


@BOTH
def test_sampling_fields_change_the_answer_as_they_say(http: httpx.Client, route: Route) -> None:
    greedy = text(ask(http, route))
    hot = {"temperature": 2, "seed": 3}
    assert text(ask(http, route, **hot)) != greedy
    for one_candidate in ({"top_k": 1}, {"min_p": 1}, {"top_p": 0}):
        assert text(ask(http, route, **hot, **one_candidate)) == greedy
    assert (
        text(ask(http, route, **hot, top_k=-1))
        == text(ask(http, route, **hot, top_k=0))
        == text(ask(http, route, **hot))
    )
    assert text(ask(http, route, max_tokens=40, repetition_penalty=5)) != text(ask(http, route, max_tokens=40))


def answer_ids(server: Running, http: httpx.Client, **fields: Any) -> tuple[list[int], str, str]:
    """Token ids, text and finish reason of an answer that a bias makes: `x`, and then whatever is likeliest."""
    body = {"model": "base", "prompt": "Paris", "max_tokens": 6, "temperature": 0, "logprobs": 0} | fields
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    vocabulary = server.service.model().vocabulary
    ids = [next(i for i in itertools.count() if vocabulary.token_text(i) == t) for t in choice["logprobs"]["tokens"]]
    return ids, choice["text"], choice["finish_reason"]


def test_end_tokens_end_an_answer_unless_the_request_says_otherwise(server: Running, http: httpx.Client) -> None:
    vocabulary = server.service.model().vocabulary
    (x,), (end,) = vocabulary.encode("x"), vocabulary.stop_ids
    always_end, always_x = {"logit_bias": {str(end): 100}}, {"logit_bias": {str(x): 100}}
    assert answer_ids(server, http, **always_end) == ([], "", "stop")
    assert answer_ids(server, http, **always_end, ignore_eos=True) == ([end] * 6, "", "length")
    ids, _, reason = answer_ids(server, http, **always_end, min_tokens=3)
    assert (len(ids), end in ids, reason) == (3, False, "stop")
    assert answer_ids(server, http, **always_x, stop_token_ids=[x]) == ([], "", "stop")
    assert answer_ids(server, http, **always_x, stop_token_ids=[x], include_stop_str_in_output=True)[1:] == (
        "x",
        "stop",
    )
    assert answer_ids(server, http, **always_x, stop=["xx"], include_stop_str_in_output=True)[1:] == ("xx", "stop")
    assert answer_ids(server, http, **always_end, ignore_eos=True, skip_special_tokens=False)[1] == "<|im_end|>" * 6
    assert answer_ids(server, http, **always_end, ignore_eos=True, stop=["<|im_end|>"])[1:] == ("", "stop")
    assert answer_ids(server, http, **always_end, ignore_eos=True, stop_token_ids=[end])[1:] == ("", "stop")


def test_a_constrained_answer_may_end_before_the_fewest_tokens(http: httpx.Client) -> None:
    answer = ask(http, "completions", max_tokens=20, min_tokens=20, guided_choice=["yes", "no"])
    assert text(answer) in ("yes", "no")


def test_a_prompt_keeps_its_last_tokens_on_request(http: httpx.Client) -> None:
    whole = ask(http, "completions", prompt=[5, 6, 7, 8], echo=True, truncate_prompt_tokens=2)
    cut = ask(http, "completions", prompt=[7, 8], echo=True)
    assert text(whole) == text(cut)
    assert whole.json()["usage"]["prompt_tokens"] == 2
    long = "How do I reset my password? " * 100
    fits = ask(http, "completions", prompt=long, truncate_prompt_tokens=-1)
    assert fits.json()["usage"]["prompt_tokens"] == 512 - 8
    assert error(ask(http, "completions", prompt=long))["code"] == "context_length_exceeded"


def test_a_chat_may_continue_its_last_message(http: httpx.Client, server: Running) -> None:
    vocabulary = server.service.model().vocabulary
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "You can"}]
    answer = ask(http, "chat", messages=messages, continue_final_message=True)
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nYou can"
    assert answer.json()["usage"]["prompt_tokens"] == len(vocabulary.encode(prompt))
    assert text(answer) == text(ask(http, "completions", prompt=prompt))
    tokenized = http.post(
        "/tokenize", json={"model": "base", "messages": messages, "continue_final_message": True}
    ).json()["tokens"]
    assert tokenized == vocabulary.encode(prompt)
    plain = ask(http, "chat", messages=messages, add_generation_prompt=False)
    assert plain.json()["usage"]["prompt_tokens"] == len(vocabulary.encode(prompt + "<|im_end|>\n"))
    both = error(ask(http, "chat", continue_final_message=True, add_generation_prompt=True))
    assert both["param"] == "add_generation_prompt"


def test_variables_that_the_chat_template_does_not_read_are_refused_by_name(http: httpx.Client) -> None:
    found = error(ask(http, "chat", chat_template_kwargs={"enable_thinking": False}))
    assert found["message"].startswith(
        "chat_template_kwargs.enable_thinking: this model's chat template does not read it"
    )
    assert error(ask(http, "chat", chat_template_kwargs={"tools": []}))["message"].startswith(
        "chat_template_kwargs.tools: cannot"
    )
    assert error(ask(http, "chat", reasoning_effort="low"))["param"] == "reasoning_effort"


def test_an_answer_names_its_weights(http: httpx.Client, client: openai.OpenAI, server: Running) -> None:
    adapter = server.service.model("formal").adapter
    assert adapter
    for route in ROUTES:
        for stream in (False, True):
            tuned = ask(http, route, stream=stream)
            assert (tuned.headers["x-adapter-digest"], tuned.headers["x-base-model"]) == (adapter.digest, "base")
            assert adapter.digest in tuned.text
            base = ask(http, route, model="base", stream=stream)
            assert "x-adapter-digest" not in base.headers
            assert base.headers["x-base-model"] == "base"
            assert '_base"' in base.text
    answer = client.completions.with_raw_response.create(model="formal", prompt="a", max_tokens=1)
    assert answer.headers["x-adapter-digest"] == adapter.digest


@BOTH
@pytest.mark.parametrize("declared", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_a_body_that_is_not_declared_as_json_is_told_what_to_send(
    http: httpx.Client, route: Route, declared: str | None
) -> None:
    body = json.dumps({"model": "base"} | BODIES[route]).encode()
    request = http.build_request(
        "POST", ROUTES[route], content=body, headers={"content-type": declared} if declared else {}
    )
    found = error(http.send(request))
    assert "Content-Type: application/json" in found["message"]
    assert (declared or "without Content-Type") in found["message"]
    assert "no body" in error(http.post(ROUTES[route]))["message"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (5, "found 5"),
        (None, "found null"),
        ([], "found an empty list"),
        ([True], "found a list that begins with true"),
        ([1.5], "found a list that begins with 1.5"),
        ([1, "a"], 'prompt[1]: expected an integer, found "a"'),
        (["a", 1], "prompt[1]: expected a string, found 1"),
        ([[1.5]], "prompt[0][0]: expected an integer, found 1.5"),
    ],
)
def test_a_prompt_of_a_wrong_type_is_told_in_one_sentence(http: httpx.Client, prompt: Any, words: str) -> None:
    message = error(ask(http, "completions", prompt=prompt))["message"]
    assert words in message
    assert message.startswith("prompt")
    assert ";" not in message


@pytest.mark.parametrize("echo", [True, False])
def test_offsets_index_into_the_returned_text_streamed_or_not(http: httpx.Client, *, echo: bool) -> None:
    body = {"prompt": "🎉 is the ñ", "max_tokens": 12, "echo": echo, "logprobs": 1, "temperature": 1, "seed": 4}
    choice = ask(http, "completions", **body).json()["choices"][0]
    tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
    if echo:
        assert offsets[:9] == [0, 0, 0, 0, 1, 4, 8, 9, 9]
    for token, offset in zip(tokens, offsets, strict=True):
        assert "\ufffd" in token or token.startswith("<|") or choice["text"].startswith(token, offset)
    cut = ask(http, "completions", **body, stop=[choice["text"][-3:]]).json()["choices"][0]
    assert max(cut["logprobs"]["text_offset"]) <= len(cut["text"])
    events = ask(http, "completions", stream=True, **body).text.split("\n\n")
    chunks = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events[:-2]]
    assert "".join(chunk["text"] for chunk in chunks) == choice["text"]
    assert [offset for chunk in chunks for offset in chunk["logprobs"]["text_offset"]] == offsets


WRONG: list[Any] = [
    {"a": [None]},
    [{"b": 1}],
    [[None]],
    "text",
    -7.5,
    True,
    10**30,
    ["a", 1, None],
    {"type": "nothing"},
]


@BOTH
def test_a_value_of_a_wrong_type_is_told_with_its_field_what_was_found_and_what_is_expected(
    http: httpx.Client, route: Route
) -> None:
    """Of every served field; what is no error is a value that the field may have."""
    refused = 0
    for name, field in FIELDS[route].items():
        for value in WRONG if field.decision == "served" and name != "model" else []:
            answer = ask(http, route, **{"max_tokens": 1, name: value})
            assert answer.status_code in (200, 400), (name, value, answer.text)
            if answer.status_code == 400:
                found = error(answer)
                refused += 1
                assert found["message"].startswith(name), (name, value, found)
                assert found["param"] == name
                assert not re.search(LEAKS, found["message"]), (name, value, found)
    assert refused > 200
