"""Structured output: schemas, patterns and grammars as constraints on the next token. The only module that knows llguidance.

Any client may send a schema, a pattern or a grammar. llguidance bounds its own work, so that neither compilation nor a step
takes long, except for `multipleOf` and repetitions inside of repetitions, which are bounded here. A keyword that cannot be enforced is an error with a reason; it is ignored only if the
request allows that.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from finetune_inference.engine.interface import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MAX_SCHEMA_BYTES = 32 << 10
"""Largest schema as JSON. Compilation time grows with the size; the longest takes two seconds."""
MAX_DIVISOR = 10_000
"""Largest product of all different `multipleOf` of a schema, in units of their last digit; llguidance needs a state per remainder."""
MAX_ALTERNATIVES = 20_000
"""Most parts of a schema after llguidance has copied the keywords beside a choice into each of its options."""
MAX_LEXER_STATES = 50_000
"""Most states of the lexer, 1 or 2 KB each; a long answer to an ordinary schema needs some hundreds."""
MAX_REPETITIONS = 100_000
"""Most copies of a part of a pattern, when its repetitions are multiplied out; they take a second."""
PATTERN_PART = re.compile(
    r"(?P<open>\()|(?P<close>\))|\{(?:\d{1,9},)?(?P<most>\d{1,9}),?\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*(?:\]|\Z)|.",
    re.DOTALL,
)
"""Part of a regular expression: the border of a group, a repetition with its largest number, or a single character or class."""
LARK_PATTERN = re.compile(r"/(?:[^/\\\n]|\\.)+/")
"""Regular expression in a Lark grammar."""
FOREIGN_PARTS = re.compile(r"%(json|regex)\b")
"""Parts of a Lark grammar that would bring schemas and patterns past the limits of this module."""
MAX_REASON = 300
"""Most characters of llguidance's reason in a message, because it may quote a whole pattern."""
ANY_OBJECT = {"type": "object"}
"""Schema of `{"type": "json_object"}`."""
ANY_TEXT = r"(.|\n)*"
"""Pattern of any text without special tokens."""
WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,20}"
"""White space between the parts of a document. Its length is limited, because small models may generate it without end."""
CALL_WHITE_SPACE = r"[\x20\x0A]{1,4}"
"""White space between the parts of a call, which templates write on one line."""


class GrammarError(ValueError):
    """A schema that cannot be enforced, or an answer that could not be constrained; the message gives the reason."""


class Grammars:
    """Compiler of schemas for the tokens of one tokenizer. Any thread may use it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def compile(self, schema: dict[str, Any], *, lenient: bool) -> "JsonConstraint":
        """Compile a schema to the constraint of a new answer. Raises GrammarError.

        `lenient`: ignore keywords that cannot be enforced; otherwise they are an error.
        """
        from llguidance import LLMatcher

        text = _checked(schema)
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_pattern": WHITE_SPACE, "lenient": lenient}
            )
        except ValueError as error:
            raise GrammarError(f"the schema cannot be used: {error}") from None
        return JsonConstraint(LLMatcher(self._tokens, grammar, log_level=0, limits=_limits()))

    def compile_lark(self, grammar: str, schemas: Sequence[dict[str, Any]]) -> "JsonConstraint":
        """Compile a grammar in llguidance's Lark syntax, which contains these schemas. Raises GrammarError."""
        from llguidance import LLMatcher

        for schema in schemas:
            _checked(schema)
        return self._constraint(LLMatcher.grammar_from_lark(grammar), "grammar")

    def after_reasoning(self, closing: str, special: int | None, then: Constraint) -> "AfterReasoning":
        """Return the constraint of an answer that ends its reasoning first; `special` is the token of `closing`, if it is one."""
        end = f"start: TEXT <[{special}]>\nTEXT: /{ANY_TEXT}/\n"
        text = f"start: reasoning\nreasoning[suffix={json.dumps(closing)}]: /{ANY_TEXT}/\n"
        return AfterReasoning(self.compile_lark("%llguidance {}\n" + (text if special is None else end), ()), then)

    def compile_pattern(self, pattern: str) -> "JsonConstraint":
        """Compile a regular expression, in Rust's syntax, that the whole answer has to match. Raises GrammarError."""
        from llguidance import LLMatcher

        _check_size(pattern, "pattern")
        if _copies(pattern) > MAX_REPETITIONS:
            raise GrammarError(f"the pattern's repetitions multiply to more than {MAX_REPETITIONS}")
        return self._constraint(LLMatcher.grammar_from_regex(pattern), "pattern")

    def compile_choice(self, choices: Sequence[str]) -> "JsonConstraint":
        """Compile texts of which the answer has to be one. Raises GrammarError."""
        from llguidance import LLMatcher

        # Lark's texts have the escapes of JSON.
        lark = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        _check_size(lark, "choice")
        return self._constraint(LLMatcher.grammar_from_lark(lark), "choice")

    def compile_grammar(self, text: str) -> "JsonConstraint":
        """Compile a grammar in Lark's syntax with a rule `start`, or in llama.cpp's GBNF with a rule `root`. Raises GrammarError."""
        from llguidance import LLMatcher
        from llguidance.gbnf_to_lark import any_to_lark

        _check_size(text, "grammar")
        if foreign := FOREIGN_PARTS.search(text):
            raise GrammarError(
                f"the grammar cannot be used: {foreign[0]} is not supported; send a schema or a pattern instead"
            )
        try:
            lark = any_to_lark(text)
        except Exception as error:
            # The converter raises its own type, RecursionError, and plain Exception for a grammar without `root`.
            reason = " ".join(str(error).split())[:MAX_REASON]
            raise GrammarError(f"the grammar cannot be used: neither Lark nor GBNF: {reason}") from None
        if any(_copies(pattern) > MAX_REPETITIONS for pattern in LARK_PATTERN.findall(lark)):
            raise GrammarError(f"the repetitions of a pattern of the grammar multiply to more than {MAX_REPETITIONS}")
        return self._constraint(LLMatcher.grammar_from_lark(lark), "grammar")

    def _constraint(self, grammar: str, subject: str) -> "JsonConstraint":
        from llguidance import LLMatcher

        return JsonConstraint(LLMatcher(self._tokens, grammar, log_level=0, limits=_limits()), subject)

    def prepare(self) -> None:
        """Prepare the other methods, which takes up to two seconds the first time. Raises GrammarError."""
        self._tokens  # noqa: B018 - a cached property, computed on first access

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, which may be a part of a character. Raises GrammarError."""
        return self._tokens.decode_bytes([token_id])

    @cached_property
    def _tokens(self) -> "LLTokenizer":
        """Tokenizer for llguidance. Made on first use, because that takes up to a second and most servers never get a schema."""
        import llguidance.hf

        try:
            return llguidance.hf.from_tokenizer(self._tokenizer)
        except ValueError as error:
            raise GrammarError(f"this model's tokenizer does not support structured output: {error}") from None


class JsonConstraint:
    """`engine.Constraint` for one answer."""

    def __init__(self, matcher: "LLMatcher", subject: str = "schema") -> None:
        """Start an answer. `subject` is what was compiled, for errors. Raises GrammarError if no token may start it."""
        self._matcher = matcher
        self._subject = subject
        self.allowed = b""
        self._advance()

    def copy(self) -> Self:
        """Return an independent copy for another answer."""
        return type(self)(self._matcher.deep_copy(), self._subject)

    @property
    def complete(self) -> bool:
        """True when nothing may follow."""
        return self._matcher.is_stopped()

    def consume(self, token: int) -> None:
        """Advance by a generated token. Raises GrammarError if computing the next allowed tokens exceeds a limit."""
        self._matcher.consume_token(token)
        self._advance()

    def _advance(self) -> None:
        # Computed now instead of on access, so that only the constructor and `consume` can fail.
        if not self._matcher.is_stopped():
            self.allowed = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            # Joined, because the reason has several lines, some with arrows below a pattern.
            reason = " ".join(self._matcher.get_error().replace("<non-verbose/>", "").split())
            raise GrammarError(f"the {self._subject} cannot be used: {reason[:MAX_REASON]}")
        if not self.complete and not any(self.allowed):
            raise GrammarError(f"this model's vocabulary has no token that continues an answer to the {self._subject}")


class AfterReasoning:
    """`engine.Constraint` that begins when the reasoning before the answer has ended."""

    def __init__(self, reasoning: Constraint, then: Constraint) -> None:
        self._reasoning = reasoning
        self._then = then
        self.allowed = reasoning.allowed

    def copy(self) -> Self:
        """Return an independent copy for another answer."""
        return type(self)(self._reasoning.copy(), self._then.copy())

    @property
    def complete(self) -> bool:
        """True when nothing may follow."""
        return self._reasoning.complete and self._then.complete

    def consume(self, token: int) -> None:
        """Advance by a generated token. Raises GrammarError."""
        current = self._then if self._reasoning.complete else self._reasoning
        current.consume(token)
        self.allowed = self._then.allowed if self._reasoning.complete else self._reasoning.allowed


def guided(schema: dict[str, Any], *, lenient: bool) -> dict[str, Any]:
    """Return a schema with the options for a place inside a Lark grammar."""
    return {**schema, "x-guidance": {"whitespace_pattern": CALL_WHITE_SPACE, "lenient": lenient}}


def _limits() -> "LLParserLimits":
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)


def _check_size(text: str, subject: str) -> None:
    size = len(text.encode(errors="replace"))
    if size > MAX_SCHEMA_BYTES:
        raise GrammarError(f"the {subject} has {size} bytes; use {MAX_SCHEMA_BYTES} or less")


def _copies(pattern: str) -> int:
    """Return an upper bound for the copies of a part of a regular expression with its repetitions multiplied out."""
    # Sizes of the open groups and of their last parts, innermost last.
    groups = [[0, 0]]
    for part in PATTERN_PART.finditer(pattern):
        if part["open"]:
            groups.append([0, 0])
        elif part["close"] and len(groups) > 1:
            total, last = groups.pop()
            groups[-1] = [sum(groups[-1]), total + last]
        elif part["most"]:
            groups[-1][1] *= max(1, int(part["most"]))
        else:
            groups[-1] = [sum(groups[-1]), 1]
    return sum(map(sum, groups))


def _checked(schema: dict[str, Any]) -> str:
    """Return the schema as JSON. Raises GrammarError for a schema whose compilation could take long."""
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
            "the schema's multipleOf values are too fine: without decimal points, the product of the different values exceeds "
            f"{MAX_DIVISOR}"
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
    """Return an upper bound for the parts of a schema with its choices multiplied out."""
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
    """Return a number without its decimal point (25 for 0.25); 0 for other values, which llguidance refuses itself."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    _, digits, exponent = Decimal(str(value)).normalize().as_tuple()
    number = int("".join(map(str, digits)))
    assert isinstance(exponent, int)  # noqa: S101 - a letter only for infinity and NaN, which JSON does not have
    zeros = min(max(exponent, 0), 9)
    return min(number * int("1" + "0" * zeros), MAX_DIVISOR + 1)
