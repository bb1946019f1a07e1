"""Every block of code on a page works: YAML is valid, Python compiles and imports, commands exist with their arguments.

A block that cannot be checked has a comment right before it that says why: `<!-- not run: needs a GPU -->`.
"""

import argparse
import ast
import importlib
import itertools
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from markdown_it import MarkdownIt

from finetune_api.v1alpha1 import FinetuneJob, InferenceService
from lab.site import pages

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "crds/**/*.md", "helm/*/README.md", "demo/*.md", "lab/*/README.md")
    for path in REPOSITORY.glob(pattern)
)
KINDS = {"FinetuneJob": FinetuneJob, "InferenceService": InferenceService}
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+?) -->\s*$")
SHELL = ("shell", "sh", "bash", "console")
DATA = ("text", "html", "dockerfile", "json", "toml")
UNPROVEN_LIMIT = 12
"""Blocks that may stay unchecked, all pages together."""


@dataclass(frozen=True)
class Block:
    """One block of code on a page."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None
    """Why the block is not checked."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """Fenced blocks, and indented ones, which are shell: comments before them may excuse them."""
    reason = None
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        if token.type == "html_block":
            excuse = NOT_RUN.search(token.content)
            reason = excuse["reason"] if excuse else None
        elif token.type in ("fence", "code_block"):
            language = token.info.split()[0] if token.info.strip() else ("shell" if token.type == "code_block" else "")
            yield Block(page, token.map[0] + 1 if token.map else 0, language, token.content, reason)
            reason = None


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def those_in(*languages: str) -> pytest.MarkDecorator:
    found = [block for block in BLOCKS if block.language in languages and block.not_run is None]
    return pytest.mark.parametrize("block", found, ids=str)


def test_every_block_has_a_language_that_is_checked() -> None:
    known = {"yaml", "python", *SHELL, *DATA}
    assert [f"{b}: {b.language!r}" for b in BLOCKS if b.language not in known] == []


def test_few_blocks_are_not_checked_and_each_says_why(record_property: Callable[[str, object], None]) -> None:
    unproven = [f"{block}: {block.not_run}" for block in BLOCKS if block.not_run]
    record_property("blocks checked", len(BLOCKS) - len(unproven))
    record_property("blocks not run", unproven)
    print(f"{len(BLOCKS)} blocks on {len(PAGES)} pages, {len(unproven)} of them not checked:", *unproven, sep="\n  ")
    assert len(unproven) <= UNPROVEN_LIMIT


@those_in("yaml")
def test_yaml_is_what_the_api_takes(block: Block, tmp_path: Path) -> None:
    for document in yaml.safe_load_all(block.text):
        if isinstance(document, dict) and document.get("kind") in KINDS:
            assert document["apiVersion"] == "finetune.dev/v1alpha1"
            KINDS[document["kind"]].model_validate(document)
        elif isinstance(document, dict) and {"model", "dataset", "output"} <= set(document):
            from finetune_trainer.config import load_config

            (tmp_path / "config.yaml").write_text(block.text)
            load_config(tmp_path / "config.yaml")


@those_in("python")
def test_python_compiles_and_what_it_imports_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@those_in("json")
def test_json_parses(block: Block) -> None:
    json.loads(block.text)


@those_in("toml")
def test_toml_parses(block: Block) -> None:
    tomllib.loads(block.text)


@those_in(*SHELL)
def test_commands_exist_with_their_arguments(block: Block) -> None:
    script = commands_of_session(block.text) if re.search(r"^\$ ", block.text, re.MULTILINE) else block.text
    assert bash_accepts(script), script
    problems = [problem for words in statements(script) for problem in problems_of(words, block)]
    assert problems == []


def bash_accepts(script: str) -> bool:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    return done.returncode == 0 and not done.stderr


def commands_of_session(text: str) -> str:
    """The commands of a console session; output is left out."""
    commands: list[str] = []
    current = ""
    for line in text.splitlines():
        if line.startswith("$ "):
            current = line[2:]
        elif current:
            current += "\n" + line
        if current and bash_accepts(current) and not current.endswith("\\"):
            commands.append(current)
            current = ""
    return "\n".join(commands)


def statements(script: str) -> Iterator[list[str]]:
    """Words of each command, also of those behind `&&`, `|` and inside `$(...)`."""
    script = re.sub(r"<<'?(\w+)'?\n.*?\n\1\n", "\n", script + "\n", flags=re.DOTALL).replace("\\\n", " ")
    for inner in re.findall(r"\$\(([^()]+)\)", script):
        yield from statements(inner)
    # shlex would drop the end of the line together with a comment.
    lexer = shlex.shlex(re.sub(r"(^|\s)#.*", r"\1", script), posix=True, punctuation_chars=";&|\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    words: list[str] = []
    for word in lexer:
        if re.fullmatch(r"[;&|\n]+", word):
            yield words
            words = []
        else:
            words.append(word)
    yield words


def problems_of(words: list[str], block: Block) -> Iterator[str]:
    """What is wrong with one command."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    program = Path(words[0]).name if words else ""
    if program in ("until", "do", "if", "then", "while"):
        yield from problems_of(words[1:], block)
    elif program == "make":
        yield from (f"no target {word}" for word in words[1:] if "=" not in word and not is_target(word))
    elif program in ("python", "python3", "finetune"):
        yield from problems_of_program(program, words[1:])
    elif program == "kubectl":
        yield from problems_of_kubectl(words, block)
    elif program == "helm":
        yield from problems_of_helm(words)
    elif program == "curl":
        yield from (f"no route {path}" for path in routes_in(words) if not is_route(path))
    elif program == "pytest":
        yield from (f"no file {word}" for word in words[1:] if "/" in word and not (REPOSITORY / word).exists())


def is_target(name: str) -> bool:
    if name == "try" and not (REPOSITORY / "client").exists():
        return True
    return re.search(rf"^{re.escape(name)}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE) is not None


def problems_of_program(program: str, words: list[str]) -> Iterator[str]:
    if program == "finetune":
        module, arguments = "finetune_cli", words
    elif words[:1] == ["-m"]:
        module, arguments = words[1], words[2:]
    elif words and words[0].endswith(".py"):
        if not (REPOSITORY / words[0]).exists():
            yield f"no file {words[0]}"
        return
    else:
        return
    if module == "finetune_cli" and find_spec(module) is None:
        return
    if find_spec(module) is None:
        yield f"no module {module}"
    elif module in PARSERS:
        problem = PARSERS[module](arguments)
        if problem:
            yield f"{module}: {problem}"


def by_argparse(module: str, function: str = "_parser") -> Callable[[list[str]], str | None]:
    def check(arguments: list[str]) -> str | None:
        parser: argparse.ArgumentParser = getattr(importlib.import_module(module), function)()
        try:
            parser.parse_args(arguments)
        except SystemExit as end:
            return f"refuses {arguments}" if end.code else None
        return None

    return check


def by_typer(arguments: list[str]) -> str | None:
    import typer.main

    main = importlib.import_module("finetune_cli.main")
    command: Any = typer.main.get_command(main.app)
    name, *rest = arguments
    try:
        command.commands[name].make_context(name, list(rest), resilient_parsing=False)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def in_help_of_local_kubernetes(arguments: list[str]) -> str | None:
    commands = re.search(r"\{([\w,]+)\}", local_kubernetes_help())
    assert commands
    return None if arguments[0] in commands[1].split(",") else f"has no command {arguments[0]}"


@cache
def local_kubernetes_help() -> str:
    command = [sys.executable, "-m", "lab.kubernetes", "--help"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


PARSERS: dict[str, Callable[[list[str]], str | None]] = {
    "finetune_trainer": by_argparse("finetune_trainer.__main__"),
    "finetune_inference": by_argparse("finetune_inference.__main__"),
    "lab.kubernetes": in_help_of_local_kubernetes,
    "finetune_cli": by_typer,
}


def problems_of_kubectl(words: list[str], block: Block) -> Iterator[str]:
    for flag, value in itertools.pairwise(words):
        if flag in ("-f", "--filename") and "://" not in value and not is_file(value, block):
            yield f"no file {value}"
    for word in words:
        path = re.fullmatch(r"--from-file=[^=]+=(.+)", word)
        if path and not is_file(path[1], block):
            yield f"no file {path[1]}"


def is_file(name: str, block: Block) -> bool:
    """Whether a file is in the repository, beside the page, or named on the page before the block, where a reader writes it."""
    if any((folder / name).exists() for folder in (REPOSITORY, block.page.parent, REPOSITORY / "crds" / "samples")):
        return True
    before = "\n".join(block.page.read_text().splitlines()[: block.line])
    written = re.search(rf"`{re.escape(name)}`|cat > {re.escape(name)}\b", before) is not None
    shown = any(
        b.page == block.page and b.language == "yaml" and f"name: {Path(name).stem}\n" in b.text for b in BLOCKS
    )
    return written or shown


def problems_of_helm(words: list[str]) -> Iterator[str]:
    if len(words) > 3 and words[1] in ("install", "upgrade") and not (REPOSITORY / words[3]).exists():
        yield f"no chart {words[3]}"
    values: dict[str, Any] = {}
    for flag, value in itertools.pairwise(words):
        if flag == "--set":
            set_value(values, value)
    schema = json.loads((REPOSITORY / "helm" / "finetune-operator" / "values.schema.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    for error in validator.iter_errors(values):
        # A file of values may leave out what the chart's own has.
        if error.validator != "required" and "REGISTRY" not in str(error.instance):
            yield f"--set {'.'.join(map(str, error.path))}: {error.message}"


def set_value(values: dict[str, Any], assignment: str) -> None:
    """Helm's `--set a.b=c`, as far as the pages use it."""
    name, _, text = assignment.partition("=")
    *path, last = name.split(".")
    for key in path:
        values = values.setdefault(key, {})
    values[last] = text[1:-1].split(",") if text.startswith("{") else yaml.safe_load(text)


def routes_in(words: list[str]) -> Iterator[str]:
    for word in words[1:]:
        url = re.match(r"(?:https?://)?(?:localhost:\d+|GATEWAY|support)(/[^?]*)", word)
        if url:
            yield url[1]


@cache
def patterns() -> list[re.Pattern[str]]:
    paths = [*pages.gateway_openapi()["paths"], *pages.server_openapi()["paths"], "/docs", "/openapi.json", "/chat"]
    return [re.compile(re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(path))) for path in paths]


def is_route(path: str) -> bool:
    return any(pattern.fullmatch(path) for pattern in patterns())


def test_commands_that_do_not_exist_are_found() -> None:
    block = Block(REPOSITORY / "README.md", 1, "shell", "", None)
    wrong = {
        "make nothing": 1,
        "python -m finetune_trainer trane config.yaml": 1,
        "python -m finetune_nothing": 1,
        "kubectl apply -f crds/samples/nothing.yaml": 1,
        "helm upgrade finetune helm/finetune-operator --set operater.logLevel=INFO": 1,
        "helm upgrade finetune helm/finetune-operator --set trainer.gpuMemory=80": 1,
        "curl localhost:8080/llm/finetunes": 1,
        "make lint && make nothing | cat": 1,
        "make lint test-unit": 0,
        "curl 'localhost:8080/llm/finetune/x?namespace=a' -X DELETE": 0,
    }
    found = {script: len([p for words in statements(script) for p in problems_of(words, block)]) for script in wrong}
    assert found == wrong


def test_every_folder_and_file_on_the_map_exists() -> None:
    text = (REPOSITORY / "AGENTS.md").read_text()
    roots = ("", "trainer_image/src/finetune_trainer", "inference_image/src/finetune_inference")
    named = {
        word for cell in re.findall(r"`([^`]+)`", text) for word in cell.split() if re.search(r"^[a-z_]+(/|$)", word)
    }
    missing = [name for name in named if "/" in name and not any((REPOSITORY / root / name).exists() for root in roots)]
    assert missing == []


def test_every_decision_is_on_the_list() -> None:
    folder = REPOSITORY / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    assert [page.name for page in sorted(folder.glob("[0-9]*.md")) if f"]({page.name})" not in index] == []


def test_every_term_of_the_glossary_has_one_row_in_order() -> None:
    terms = re.findall(r"^\| ([^|]+?) \| ", (REPOSITORY / "docs" / "glossary.md").read_text(), re.MULTILINE)[1:]
    assert terms == sorted(terms, key=str.casefold)
    assert len(terms) == len(set(terms))


def test_every_reason_in_the_failure_modes_exists() -> None:
    from finetune_api.conditions import ConditionType, Phase
    from finetune_api.reasons import Reason

    text = (REPOSITORY / "docs" / "explanation" / "failure-modes.md").read_text()
    words = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z]+[a-z]*)+)`", text))
    assert words - {member.value for kind in (Reason, Phase, ConditionType) for member in kind} == set()
