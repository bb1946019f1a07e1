"""From a chat's request to its sequences: the one way of `/v1/chat/completions`, `/v1/responses` and `/v1/messages`.

The other two routes translate their request into a `ChatCompletionRequest`. So equal conversations have equal prompts, whichever
route they come by, and a field is served or refused on all of them.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from finetune_inference.adapters.registry import LoadedModel
from finetune_inference.api.errors import invalid_value
from finetune_inference.api.generation import (
    ServerState,
    UsageCounter,
    answer_constraint,
    encoding_limit,
    served_model,
    token_requests,
    truncated,
)
from finetune_inference.api.reply import Reply
from finetune_inference.api.requests import ChatCompletionRequest, NamedToolChoice
from finetune_inference.api.structured_output import JsonObjectFormat, JsonSchemaFormat
from finetune_inference.engine.interface import Constraint, TokenRequest
from finetune_inference.text.answer_format import AnswerFormat
from finetune_inference.text.answer_parser import Tools
from finetune_inference.text.call_grammar import Function, call_grammar, constrained_format
from finetune_inference.text.chat_answer import AnswerDelta, ChatDecoder, Reading, opens_reasoning
from finetune_inference.text.grammar import ANY_OBJECT, GrammarError, guided
from finetune_inference.text.vocabulary import LeftOutError, Vocabulary

Result = TypeVar("Result")


@dataclass(frozen=True)
class ChatSequences:
    """A chat whose sequences are ready to be submitted."""

    served: LoadedModel
    body: ChatCompletionRequest
    requests: list[TokenRequest]
    counter: UsageCounter
    form: AnswerFormat
    """Form in which the answers are read."""
    tools: Tools
    in_reasoning: bool
    """True if the prompt ends within a block of reasoning."""

    def decoders(self) -> list[ChatDecoder]:
        """Make the decoder of each answer."""
        rules, reading = self.body.text_rules, Reading(self.form, self.tools, in_reasoning=self.in_reasoning)
        return [ChatDecoder(self.served.vocabulary, rules, request.prompt, reading) for request in self.requests]


@dataclass
class ChatReply(Reply[ChatCompletionRequest, AnswerDelta]):
    """Reply of a route for chats."""

    chat: ChatSequences

    def _decoders(self) -> list[ChatDecoder]:
        return self.chat.decoders()


async def prepare_chat(server: ServerState, body: ChatCompletionRequest) -> ChatSequences:
    """Render the conversation, compile what the answer has to match, and make the sequences. Raises as the steps do."""
    server.service.require_room()
    served = await served_model(server, body.model)
    settings, vocabulary = server.service.settings, served.vocabulary
    prompt = await asyncio.to_thread(encode_prompt, served, body, encoding_limit(server.service, body))
    prompt = truncated(server.service, body, prompt, body.answer_limit)
    form = await asyncio.to_thread(vocabulary.answer_format, settings.tool_call_format, settings.reasoning_format)
    in_reasoning = opens_reasoning(form, vocabulary.tail(prompt))
    functions = functions_of(body)
    forced = body.tool_choice not in (None, "none", "auto")
    if forced:
        form = constrained_format(form)
    constraint = await _constraint(server, vocabulary, body, form, functions)
    if constraint and in_reasoning and form.reasoning:
        closing = form.reasoning.closing
        special = vocabulary.special_id(closing)
        constraint = await _compiled(server, partial(vocabulary.grammars.after_reasoning, closing, special, constraint))
    if body.logprobs:
        # Prepared here and not for the first token, because all other answers would wait for it.
        await _compiled(server, vocabulary.prepare_token_bytes)
    requests = token_requests(
        server.service,
        served,
        body,
        [prompt],
        max_tokens=body.answer_limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        constraint=constraint,
    )
    counter = UsageCounter(server.metrics, served.name, len(prompt))
    return ChatSequences(served, body, requests, counter, form, _tools(body, functions), in_reasoning)


def encode_prompt(served: LoadedModel, body: ChatCompletionRequest, limit: int) -> list[int]:
    """Return the token ids of a chat's prompt. Raises ApiError or PromptError."""
    tools = None if body.tool_choice == "none" else body.tools
    try:
        return served.vocabulary.encode_chat(
            body.messages,
            limit,
            tools=_rendered(tools),
            template_kwargs=_template_kwargs(served.vocabulary, body),
            continue_final_message=bool(body.continue_final_message),
            add_generation_prompt=body.add_generation_prompt is not False,
        )
    except LeftOutError as error:
        raise invalid_value(f"{error}.", error.field) from None


def functions_of(body: ChatCompletionRequest) -> list[Function]:
    """Return the functions that the answer may call."""
    if body.tool_choice == "none":
        return []
    chosen = body.tool_choice.function.name if isinstance(body.tool_choice, NamedToolChoice) else None
    given = [tool["function"] for tool in body.tools or ()]
    return [
        # Arguments are an object, also if the schema does not say so.
        Function(one["name"], {"type": "object", **one["parameters"]}, one.get("strict") is True)
        for one in given
        if chosen in (None, one["name"])
    ]


def _rendered(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return the tools as templates get them: `strict` is for the server, and no training row has it."""
    if not tools:
        return None
    return [
        {**tool, "function": {key: value for key, value in tool["function"].items() if key != "strict"}}
        for tool in tools
    ]


def _template_kwargs(vocabulary: Vocabulary, body: ChatCompletionRequest) -> Mapping[str, Any]:
    """Return the variables of the chat template. Raises ApiError for an effort that the template knows nothing of."""
    given: dict[str, Any] = dict(body.chat_template_kwargs or {})
    effort = body.reasoning_effort
    if effort is None:
        return given
    if vocabulary.reads_variable("reasoning_effort"):
        return {"reasoning_effort": effort, **given}
    for switch in ("enable_thinking", "thinking"):
        if vocabulary.reads_variable(switch):
            return {switch: effort != "none", **given}
    if effort != "none":
        raise invalid_value(
            f"reasoning_effort is {effort}, but the model's chat template has no variable for it; leave it out.",
            "reasoning_effort",
        )
    return given


def _tools(body: ChatCompletionRequest, functions: list[Function]) -> Tools:
    types = {function.name: function.schema.get("properties") or {} for function in functions}
    answers_schema = body.form is not None
    return Tools(
        types=types,
        offered=bool(functions),
        read=body.tool_choice != "none" and (bool(functions) or not answers_schema),
        single=body.parallel_tool_calls is False or isinstance(body.tool_choice, NamedToolChoice),
    )


async def _compiled(server: ServerState, work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(server.compiling, work)


async def _constraint(
    server: ServerState,
    vocabulary: Vocabulary,
    body: ChatCompletionRequest,
    form: AnswerFormat,
    functions: list[Function],
) -> Constraint | None:
    """Compile the constraint of the answer; None for free text. Raises ApiError."""
    if body.tool_choice not in (None, "none", "auto"):
        return await _compiled(server, partial(_call_constraint, vocabulary, body, form, functions, None))
    if body.form is None or not functions or form.calls is None:
        return await answer_constraint(server, vocabulary, body)
    schema, lenient = _answer_schema(body)
    if schema is None or not form.calls.marked:
        raise invalid_value(
            f"{body.form.field}: this model's calls and answers of this form cannot be told apart; leave it out, or tools.",
            body.form.field,
        )
    answer, calls = guided(schema, lenient=lenient), constrained_format(form)
    return await _compiled(server, partial(_call_constraint, vocabulary, body, calls, functions, answer))


def _answer_schema(body: ChatCompletionRequest) -> tuple[dict[str, Any] | None, bool]:
    """Return the schema of the answer, and whether keywords that cannot be enforced are ignored."""
    match body.response_format:
        case JsonObjectFormat():
            return ANY_OBJECT, False
        case JsonSchemaFormat(json_schema=asked):
            return asked.json_schema, not asked.strict
    return None, False


def _call_constraint(
    vocabulary: Vocabulary,
    body: ChatCompletionRequest,
    form: AnswerFormat,
    functions: list[Function],
    answer: dict[str, Any] | None,
) -> Constraint:
    several = body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedToolChoice)
    try:
        grammar = call_grammar(form, functions, vocabulary.grammar_term, several=several, answer=answer)
        return vocabulary.grammars.compile_lark(grammar, [function.schema for function in functions])
    except GrammarError as error:
        raise invalid_value(f"tools: {error}", "tools") from None
