"""Fields of requests that clients of several servers send, and the decision about each one.

A field that changes an answer is served, or refused with a reason that says what to use instead. A field that changes no answer
is accepted and ignored. Any other field is unknown and refused. The page "Request fields" of the documentation is made from
this table, and a test compares it with the classes of `requests`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Route = Literal["chat", "completions"]
Decision = Literal["served", "refused", "ignored"]

BOTH: Final[tuple[Route, ...]] = ("chat", "completions")
CHAT: Final[tuple[Route, ...]] = ("chat",)
COMPLETIONS: Final[tuple[Route, ...]] = ("completions",)
ROUTES: Final[dict[Route, str]] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
"""Paths by route."""


@dataclass(frozen=True)
class RequestField:
    """Decision about one field."""

    name: str
    origin: str
    """API that defines the field."""
    decision: Decision
    reason: str
    """Meaning of a served field; for a refused one why and what to use, for an ignored one why it changes no answer."""
    routes: tuple[Route, ...] = BOTH
    neutral: tuple[Any, ...] = ()
    """Values of a refused field that change no answer and are accepted, beside null."""


def _served(origin: str, routes: tuple[Route, ...], **meanings: str) -> list[RequestField]:
    return [RequestField(name, origin, "served", meaning, routes) for name, meaning in meanings.items()]


def _refused(
    origin: str, reason: str, *names: str, routes: tuple[Route, ...] = BOTH, neutral: Iterable[Any] = ()
) -> list[RequestField]:
    return [RequestField(name, origin, "refused", reason, routes, tuple(neutral)) for name in names]


def _ignored(origin: str, reason: str, *names: str, routes: tuple[Route, ...] = BOTH) -> list[RequestField]:
    return [RequestField(name, origin, "ignored", reason, routes) for name in names]


def _instead(origin: str, routes: tuple[Route, ...] = BOTH, **ours: str) -> list[RequestField]:
    """Refuse fields that have another name here."""
    return [RequestField(name, origin, "refused", f"use {own}", routes) for name, own in ours.items()]


NOTHING: Final[tuple[Any, ...]] = (False, 0, "", [], {})
"""Values that switch most fields off."""

_OPENAI = [
    *_served(
        "OpenAI",
        BOTH,
        model="name of the base model or of an adapter",
        temperature="0 is greedy; default 1",
        top_p="probability that the candidates hold together",
        n="number of answers; their seeds count up from `seed`",
        seed="the same seed and `system_fingerprint` give the same answer",
        stop="up to 16 texts; a special token ends the answer although the text does not show it",
        frequency_penalty="subtracted for each time a token was generated",
        presence_penalty="subtracted once from each generated token",
        logit_bias="added to the logits of tokens, by token id",
        stream="answer as server-sent events",
        stream_options="only `include_usage`",
        max_tokens="longest answer",
        logprobs="log-probabilities of the answer under the model, before temperature and penalties",
        response_format="`text`, `json_object` or `json_schema`; OpenAI has it for chats only",
    ),
    *_served(
        "OpenAI",
        CHAT,
        messages="the conversation",
        max_completion_tokens="longest answer; comes before `max_tokens`",
        top_logprobs="up to 20 alternatives for each token",
        reasoning_effort="sets the template's variable, or its switch `enable_thinking` or `thinking`",
        tools="functions that the model may call; refused if the chat template has no place for them",
        tool_choice="`auto`, `none`, `required` or a named function; a required call matches its schema",
        parallel_tool_calls="false ends the answer after one call",
    ),
    *_served(
        "OpenAI",
        COMPLETIONS,
        prompt="one or more texts or lists of token ids",
        echo="the prompt comes before the answer; with `logprobs` it is scored",
        best_of="only the same value as `n`, because no answers are generated that are not returned",
    ),
    *_ignored("OpenAI", "labels of the caller; nothing is stored", "user", "metadata", "safety_identifier"),
    *_ignored("OpenAI", "nothing is stored", "store"),
    *_ignored("OpenAI", "there is one tier, and each prompt is computed", "service_tier", "prompt_cache_key"),
    *_ignored("OpenAI", "each prompt is computed", "prompt_cache_retention", "prompt_cache_options"),
    *_refused("OpenAI", "this server moderates nothing", "moderation"),
    *_ignored("OpenAI", "a guess that would only save time", "prediction", routes=CHAT),
    *_refused("OpenAI", "use tools", "functions", routes=CHAT, neutral=[[], {}, ""]),
    *_refused("OpenAI", "use tool_choice", "function_call", routes=CHAT, neutral=["none", "auto", "", {}]),
    *_refused("OpenAI", "answers are text", "modalities", routes=CHAT, neutral=[["text"], []]),
    *_refused("OpenAI", "answers are text", "audio", routes=CHAT, neutral=NOTHING),
    *_refused("OpenAI", "this server reaches nothing outside", "web_search_options", routes=CHAT),
    *_refused("OpenAI", "ask for it in a message", "verbosity", routes=CHAT, neutral=["medium"]),
    *_refused("OpenAI", "text is only continued at its end", "suffix", routes=COMPLETIONS, neutral=[""]),
    *_refused("OpenAI", "belongs to /v1/chat/completions", "messages", routes=COMPLETIONS),
    *_refused("OpenAI", "belongs to /v1/completions; use messages", "prompt", routes=CHAT),
    *_refused("OpenAI", "belongs to /v1/responses; use messages", "input", "instructions", "previous_response_id"),
    *_instead("OpenAI", max_output_tokens="max_tokens"),
    *_instead(
        "OpenAI", COMPLETIONS, max_completion_tokens="max_tokens", top_logprobs="logprobs, a number on this route"
    ),
    *_refused(
        "OpenAI",
        "belongs to /v1/chat/completions",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "reasoning_effort",
        routes=COMPLETIONS,
    ),
    *_refused("OpenAI", "no answers are generated that are not returned; use n", "best_of", routes=CHAT, neutral=[1]),
]
_VLLM = [
    *_served(
        "vLLM",
        BOTH,
        top_k="number of likeliest tokens to choose from; 0 or -1 is all",
        min_p="least probability of a candidate, as a share of the likeliest token's",
        repetition_penalty="as in transformers, over prompt and answer; default: the model's own",
        stop_token_ids="tokens that end the answer, beside those of the model",  # noqa: S106 - no secret
        min_tokens="no end token and no stop text before this number of tokens",
        ignore_eos="the model's end tokens do not end the answer; `stop` and `stop_token_ids` do",
        include_stop_str_in_output="the answer ends after its stop text instead of before it",
        skip_special_tokens="false shows special tokens in the answer",
        truncate_prompt_tokens="keeps the last tokens of the prompt; -1 keeps those that fit",
        structured_outputs="an object with one of `json`, `json_object`, `regex`, `choice`, `grammar`",
        guided_json="JSON schema of the answer; older name of `structured_outputs.json`",
        guided_regex="pattern of the whole answer; older name of `structured_outputs.regex`",
        guided_choice="texts of which the answer is one; older name of `structured_outputs.choice`",
        guided_grammar="Lark or GBNF grammar; older name of `structured_outputs.grammar`",
    ),
    *_served(
        "vLLM",
        CHAT,
        chat_template_kwargs="variables of the chat template; those that it does not read are refused",
        continue_final_message="the answer continues the last message",
        add_generation_prompt="false leaves out the beginning of the assistant's turn",
    ),
    *_served("vLLM", COMPLETIONS, add_special_tokens="false leaves out the tokenizer's start token"),
    *_refused("vLLM", "the chat template writes them", "add_special_tokens", routes=CHAT, neutral=[False]),
    *_ignored("vLLM", "one library enforces all schemas", "guided_decoding_backend"),
    *_ignored("vLLM", "concerns tokenizers that are not used here", "spaces_between_special_tokens"),
    *_ignored("vLLM", "adapters take turns, and requests come in order", "priority"),
    *_ignored("vLLM", "the server makes ids, in the header X-Request-Id", "request_id"),
    *_ignored("vLLM", "prompts are not shared between requests", "cache_salt"),
    *_refused("vLLM", "its length is bounded here", "guided_whitespace_pattern"),
    *_refused("vLLM", "use echo with logprobs on /v1/completions", "prompt_logprobs"),
    *_refused("vLLM", "put the text of your last message before the answer", "echo", routes=CHAT, neutral=[False]),
    *_refused(
        "vLLM", "an adapter is proven with its own template; use chat_template_kwargs", "chat_template", routes=CHAT
    ),
    *_refused("vLLM", "belongs to chat_template_kwargs", "documents", "enable_thinking", routes=CHAT, neutral=[[]]),
    *_refused("vLLM", "belongs to /v1/chat/completions", "chat_template_kwargs", routes=COMPLETIONS, neutral=[{}]),
    *_refused(
        "vLLM",
        "belongs to /v1/chat/completions",
        "continue_final_message",
        "add_generation_prompt",
        routes=COMPLETIONS,
        neutral=[False],
    ),
    *_refused("vLLM", "answers are text", "mm_processor_kwargs", "media_io_kwargs", neutral=[{}]),
    *_refused("vLLM", "beams are not searched; use n", "use_beam_search", "early_stopping", neutral=[False]),
    *_refused("vLLM", "beams are not searched; use n", "length_penalty", neutral=[1, 0]),
    *_refused("vLLM", "use logit_bias or structured_outputs.choice", "allowed_token_ids", "bad_words", neutral=[[]]),
    *_refused("vLLM", "use structured_outputs or logit_bias", "logits_processors", neutral=[[]]),
    *_refused("vLLM", "use structured_outputs.grammar", "structural_tag"),
    *_refused(
        "vLLM",
        "token ids are not returned; POST /tokenize",
        "return_tokens_as_token_ids",
        "return_token_ids",
        neutral=[False],
    ),
    *_refused(
        "vLLM", "not supported by this server", "kv_transfer_params", "vllm_xargs", "prompt_embeds", neutral=[{}]
    ),
    *_refused("vLLM", "reasoning comes in `reasoning_content`", "include_reasoning", routes=CHAT, neutral=[True]),
]
_TGI = [
    *_instead(
        "TGI",
        inputs="prompt, or messages on /v1/chat/completions",
        parameters="its fields directly, by OpenAI's names",
        max_new_tokens="max_tokens",
        stop_sequences="stop",
        truncate="truncate_prompt_tokens",
        return_full_text="echo on /v1/completions",
        top_n_tokens="top_logprobs, or logprobs on /v1/completions",
        adapter_id="model",
        lora_request="model",
    ),
    *_refused("TGI", "use temperature: 0 for greedy answers", "do_sample", neutral=[True]),
    *_refused("TGI", "use logprobs", "details", "decoder_input_details", neutral=[False]),
    *_refused("TGI", "use top_p or min_p", "typical_p", neutral=[1]),
    *_refused("TGI", "answers have no watermark", "watermark", neutral=[False]),
    *_refused("TGI", "the chat template shows the functions", "tool_prompt", routes=CHAT),
    *_refused("TGI", "use a message", "guideline", routes=CHAT),
]
_LLAMA_CPP = [
    *_instead(
        "llama.cpp",
        n_predict="max_tokens",
        repeat_penalty="repetition_penalty",
        n_probs="top_logprobs, or logprobs on /v1/completions",
        grammar="structured_outputs.grammar, which takes GBNF",
        json_schema="response_format or structured_outputs.json",
        lora="model, which names the adapter",
    ),
    *_refused("llama.cpp", "the penalty is over prompt and answer", "repeat_last_n", neutral=[-1]),
    *_refused("llama.cpp", "use top_p or min_p", "tfs_z", neutral=[1]),
    *_refused(
        "llama.cpp",
        "use top_k, top_p or min_p",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
        "dynatemp_range",
        "dynatemp_exponent",
        "xtc_probability",
        "xtc_threshold",
        "top_n_sigma",
        neutral=[0],
    ),
    *_refused(
        "llama.cpp",
        "use repetition_penalty, frequency_penalty or presence_penalty",
        "dry_multiplier",
        "dry_base",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "penalize_nl",
        neutral=[0],
    ),
    *_refused("llama.cpp", "the order of the rules is that of transformers", "samplers", "min_keep", neutral=NOTHING),
    *_refused("llama.cpp", "prompts are not cut; see truncate_prompt_tokens", "n_keep", neutral=[0]),
    *_refused("llama.cpp", "not supported by this server", "t_max_predict_ms", "n_indent", neutral=[0, -1]),
    *_refused("llama.cpp", "log-probabilities are the model's own", "post_sampling_probs", neutral=[False]),
    *_refused("llama.cpp", "token ids are not returned; POST /tokenize", "return_tokens", neutral=[False]),
    *_ignored("llama.cpp", "each prompt is computed", "cache_prompt", "id_slot", "n_cache_reuse"),
    *_ignored("llama.cpp", "the times are in /metrics", "timings_per_token", "return_progress"),
]
_OLLAMA = [
    *_instead(
        "Ollama",
        options="its fields directly, by OpenAI's names",
        num_predict="max_tokens",
        format="response_format",
        think="chat_template_kwargs, if the template has a switch",
        system="a message with the role system",
        template="chat_template_kwargs; the template belongs to the adapter",
        raw="/v1/completions",
        context="messages",
        images="text only",
    ),
    *_refused("Ollama", "the server's start fixes it", "num_ctx"),
    *_ignored("Ollama", "models stay loaded", "keep_alive"),
    *_ignored(
        "Ollama", "the hardware is fixed at the server's start", "num_gpu", "num_thread", "num_batch", "main_gpu"
    ),
]


def _by_route() -> dict[Route, dict[str, RequestField]]:
    table: dict[Route, dict[str, RequestField]] = {"chat": {}, "completions": {}}
    for field in (*_OPENAI, *_VLLM, *_TGI, *_LLAMA_CPP, *_OLLAMA):
        for route in field.routes:
            known = table[route].setdefault(field.name, field)
            assert known is field, f"{field.name} has two decisions for {route}"  # noqa: S101 - a mistake in the table
    return table


FIELDS: Final = _by_route()
"""Decisions by route and name."""


def without_neutral(route: Route, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a body without the fields that change no answer: ignored ones, and refused ones with a neutral value."""
    return {name: value for name, value in body.items() if not _is_neutral(FIELDS[route].get(name), value)}


def refusal(route: Route, name: str) -> str | None:
    """Return the reason why a field is refused; None for an unknown one."""
    field = FIELDS[route].get(name)
    return field.reason if field else None


def _is_neutral(field: RequestField | None, value: Any) -> bool:
    if field is None or field.decision == "served":
        return False
    return field.decision == "ignored" or value is None or value in field.neutral
