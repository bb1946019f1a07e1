"""What an answer has to look like: JSON schemas as sets of tokens that may come next. The only module that knows llguidance.

A schema comes from whoever may ask. llguidance counts the work it does and gives up, so that neither compiling nor a step
takes long, with one exception that is caught here (`multipleOf`); what it cannot hold an answer to is refused with its
reason, never passed over, unless the request asks for that.
"""

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MAX_SCHEMA_BYTES = 32 << 10
"""Of a schema as JSON: compiling one takes longer the longer it is, two seconds at worst."""
MAX_DIVISOR = 10_000
"""Product of all different `multipleOf` of a schema, in units of their last digit: llguidance makes a state of each remainder."""
MAX_ALTERNATIVES = 20_000
"""Parts of a schema once what stands beside a choice is written into each of its options, which llguidance does."""
MAX_LEXER_STATES = 50_000
"""1 or 2 KB each; a long answer to an ordinary schema needs some hundreds."""
MAX_REASON = 300
"""Characters of llguidance's reason in ours: it may quote all of a pattern."""
ANY_OBJECT = {"type": "object"}
"""The schema of `{"type": "json_object"}`."""
WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,20}"
"""Between the parts of a document: as the model likes to write it, but not for ever; small models get lost in it otherwise."""


class GrammarError(ValueError):
    """A schema that no answer can be held to, or an answer that could not be held to it; the message says why."""


class Grammars:
    """Compiles schemas for the tokens of one tokenizer. Any thread may use it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def compile(self, schema: dict[str, Any], *, lenient: bool) -> "JsonAnswer":
        """An answer that has yet to begin. Raises GrammarError.

        `lenient`: keywords that cannot be enforced are passed over; otherwise they are an error.
        """
        from llguidance import LLMatcher

        text = _checked(schema)
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_pattern": WHITE_SPACE, "lenient": lenient}
            )
        except ValueError as error:
            raise GrammarError(f"the schema cannot be used: {error}") from None
        return JsonAnswer(LLMatcher(self._tokens, grammar, log_level=0, limits=_limits()))

    def prepare(self) -> None:
        """Make now what the other methods need, which takes up to two seconds the first time. Raises GrammarError."""
        self._tokens  # noqa: B018 - made by being asked for

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, which need not be whole characters. Raises GrammarError."""
        return self._tokens.decode_bytes([token_id])

    @cached_property
    def _tokens(self) -> "LLTokenizer":
        """Made when it is needed first: that takes up to a second, and most servers are never asked for a schema."""
        import llguidance.hf

        try:
            return llguidance.hf.from_tokenizer(self._tokenizer)
        except ValueError as error:
            raise GrammarError(f"answers cannot be held to a schema with this model's tokenizer: {error}") from None


class JsonAnswer:
    """`engine.Constraint` for one answer."""

    def __init__(self, matcher: "LLMatcher") -> None:
        """Raises GrammarError if the answer cannot begin."""
        self._matcher = matcher
        self.allowed = b""
        self._advance()

    def copy(self) -> Self:
        """The same for another answer."""
        return type(self)(self._matcher.deep_copy())

    @property
    def complete(self) -> bool:
        """Nothing may follow."""
        return self._matcher.is_stopped()

    def take(self, token: int) -> None:
        """Note that a token came. Raises GrammarError if what may follow it is too much to find out."""
        self._matcher.consume_token(token)
        self._advance()

    def _advance(self) -> None:
        # What may follow is computed now and not when it is needed, so that only the two places that can say so can fail.
        if not self._matcher.is_stopped():
            self.allowed = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            # Over several lines, of which some draw arrows below a pattern.
            reason = " ".join(self._matcher.get_error().replace("<non-verbose/>", "").split())
            raise GrammarError(f"the schema cannot be used: {reason[:MAX_REASON]}")
        if not self.complete and not any(self.allowed):
            raise GrammarError("this model has no token that could come next in an answer to the schema")


def _limits() -> "LLParserLimits":
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)


def _checked(schema: dict[str, Any]) -> str:
    """The schema as JSON. Raises GrammarError for one that could take long."""
    try:
        text = json.dumps(schema, allow_nan=False)
        divisors = {divisor for value in _values_of("multipleOf", schema) if (divisor := _divisor(value))}
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the schema cannot be used: {error}") from None
    if len(text) > MAX_SCHEMA_BYTES:
        raise GrammarError(f"the schema has {len(text)} bytes; use {MAX_SCHEMA_BYTES} or less")
    if _expanded(schema) > MAX_ALTERNATIVES:
        raise GrammarError(
            "the schema has too many alternatives: anyOf, oneOf or allOf beside other keywords multiply, level by level"
        )
    if math.prod(divisors) > MAX_DIVISOR:
        raise GrammarError(
            "the schema's multipleOf are too fine: written without their decimal point, the different ones have a product "
            f"of more than {MAX_DIVISOR}"
        )
    return text


def _values_of(key: str, value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for inner in value.values():
            yield from _values_of(key, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _values_of(key, inner)


def _expanded(value: Any) -> int:
    """Parts of a schema with its choices multiplied out; more than the real ones, not less."""
    if isinstance(value, list):
        return sum(map(_expanded, value))
    if not isinstance(value, dict):
        return 0
    choices = [value[key] for key in ("anyOf", "oneOf", "allOf") if isinstance(value.get(key), list)]
    own = 1 + sum(_expanded(inner) for key, inner in value.items() if key not in ("anyOf", "oneOf", "allOf"))
    for options in choices:
        own = own * max(1, len(options)) + sum(map(_expanded, options))
    return own


def _divisor(value: Any) -> int:
    """0.25 and 25 as 25; 0 for what is no number, which llguidance refuses by itself."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    _, digits, exponent = Decimal(str(value)).normalize().as_tuple()
    number = int("".join(map(str, digits)))
    assert isinstance(exponent, int)  # noqa: S101 - a word only for what is not finite, and there is no such number in JSON
    zeros = min(max(exponent, 0), 9)
    return min(number * int("1" + "0" * zeros), MAX_DIVISOR + 1)
