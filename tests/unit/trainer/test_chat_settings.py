"""`chat` of a job: what is wrong with it is said before training, and another one never gets cached tokens."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.v1alpha1 import Chat
from finetune_trainer.data import cache_key
from finetune_trainer.dataset import _cache_inputs, read_examples
from finetune_trainer.errors import TrainingError
from finetune_trainer.model.chat_template import apply_chat
from finetune_trainer.preflight.checks import run_preflight
from finetune_trainer.preflight.summary import warnings_of
from lab.fixtures.chat_templates import FAMILIES
from lab.fixtures.tiny_model import as_jsonl, chat_rows, make_tiny_tokenizer
from lab.fixtures.training_runs import a_training_config

pytestmark = pytest.mark.model

GEMMA = next(family for family in FAMILIES if family.name == "gemma2").template


@pytest.mark.parametrize(
    ("chat", "problem"),
    [
        ({"template": "{% for m in messages %}"}, r"chat.template cannot render a question and its answer: .*"),
        ({"template": "{{ raise_exception('never') }}"}, "chat.template cannot render .*: never"),
        (
            {"template": "{% for m in messages %}{{ m.role }}{% endfor %}"},
            "chat.template leaves out the text of messages",
        ),
        ({"template": "{{ messages[0].__class__.__mro__ }}"}, "chat.template cannot render"),
        ({"templateKwargs": {"enable_thinkin": False}}, "has enable_thinkin, which the chat template does not read"),
        ({"templateKwargs": {"tokenize": True}}, "has tokenize, which cannot be a variable of a template"),
        ({"template": GEMMA, "systemPrompt": "Be brief."}, "chat.systemPrompt cannot be rendered: .*System role"),
        (
            {
                "template": "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
                "systemPrompt": "Be brief.",
            },
            "chat.systemPrompt is left out by the chat template",
        ),
    ],
)
def test_a_chat_that_cannot_work_is_refused_by_name(chat: dict[str, Any], problem: str) -> None:
    with pytest.raises(TrainingError, match=problem):
        apply_chat(make_tiny_tokenizer(), Chat.model_validate(chat))


def test_settings_need_a_template() -> None:
    tokenizer = make_tiny_tokenizer(with_chat_template=False)
    with pytest.raises(TrainingError, match="need a chat template, and the model has none; set template"):
        apply_chat(tokenizer, Chat(system_prompt="Be brief."))
    apply_chat(tokenizer, Chat(template=GEMMA))
    assert tokenizer.chat_template == GEMMA


def test_large_values_are_refused() -> None:
    with pytest.raises(ValueError, match="templateKwargs have more than 8192 characters"):
        Chat(template_kwargs={"a": "b" * 9000})


def test_validate_reports_a_wrong_template(tiny_model: Path, tmp_path: Path) -> None:
    config = a_training_config(
        tiny_model, tmp_path, dataset={"inline": as_jsonl(chat_rows(2))}, chat={"template": "{{ nothing.at.all }}"}
    )
    verdict = run_preflight(config).verdict
    assert verdict
    assert verdict.reason == "SpecInvalid"
    assert "chat.template cannot render" in verdict.message


def test_validate_warns_of_answers_that_never_end(tiny_model: Path, tmp_path: Path) -> None:
    endless = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}### assistant:\n{% endif %}"
    config = a_training_config(
        tiny_model, tmp_path, dataset={"inline": as_jsonl(chat_rows(2))}, chat={"template": endless}
    )
    found = run_preflight(config)
    assert found.verdict is None
    assert [
        warning for warning in warnings_of(found) if warning.startswith("2 of 2 training answers end without a token")
    ]


def test_every_setting_is_a_part_of_the_cached_tokens_key(tiny_model: Path, tmp_path: Path) -> None:
    keys = set()
    for chat in (
        None,
        {"systemPrompt": "Be brief."},
        {"template": f"{make_tiny_tokenizer().chat_template} "},
        {"template": GEMMA, "templateKwargs": {"role": "model"}},
    ):
        config = a_training_config(tiny_model, tmp_path, dataset={"inline": as_jsonl(chat_rows(2))}, chat=chat)
        tokenizer = make_tiny_tokenizer()
        apply_chat(tokenizer, config.chat)
        keys.add(cache_key(tokenizer, **_cache_inputs(config, read_examples(config))))
    assert len(keys) == 4
