"""Tokens that a model has no embedding for, as in tokenizers that were extended: they matter where they are used, and only there."""

import json
import shutil
from pathlib import Path

import httpx
import pytest

from finetune_api.reasons import Reason
from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig
from finetune_inference.config import Settings
from finetune_inference.inference import InferenceService
from finetune_inference.text.vocabulary import PromptError
from finetune_trainer.preflight import run_preflight
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.tiny_model import make_tiny_model, make_tiny_tokenizer
from lab.fixtures.training_runs import a_training_config
from support.server.running_inference import running

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def unresized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with embeddings for 384 tokens, and a tokenizer that has one more, which is also its padding."""
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "unresized")
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"], "pad_token": "<|tool|>"})
    tokenizer.save_pretrained(folder)
    return folder


def rows(*answers: str) -> dict[str, str]:
    chats = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}] for answer in answers]
    return {"inline": "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)}


def test_rows_with_such_a_token_are_counted_and_the_token_is_named(unresized: Path, tmp_path: Path) -> None:
    config = a_training_config(
        unresized, tmp_path, dataset=rows("It left.", "<|tool|> It left.", "a <|tool|> <|tool|>")
    )
    (failure,) = run_preflight(config).failures
    assert failure.reason is Reason.DATASET_INVALID
    assert failure.message == (
        "Dataset: 2 of 3 rows have the token <|tool|> (id 384), but the model has embeddings for 384 tokens. Remove the token "
        "from the rows or the chat template, or use a model whose embeddings were extended for its tokenizer"
    )


def test_rows_without_it_are_trained_and_the_adapter_is_served(unresized: Path, tmp_path: Path) -> None:
    config = a_training_config(
        unresized, tmp_path, dataset=rows("It left.", "Your order left the warehouse this morning.")
    )
    assert run_preflight(config).failures == []
    pipeline = FinetuningPipeline(config)
    pipeline.run()
    served = ServedAdapter(name="tuned", path=str(pipeline.store.adapter))
    serving = ServingConfig(model=ServedModel(name="base", path=str(unresized)), adapters=[served])
    with running(InferenceService(serving, Settings(threads=1))) as server:
        assert server.service.refused == {}
        assert server.service.process_text("Hi", model="tuned", max_tokens=4).completion_tokens
        with pytest.raises(PromptError, match=r"no embedding for the token <\|tool\|> \(id 384\)"):
            server.service.process_text("<|tool|>", model="tuned", max_tokens=4)
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={"model": "tuned", "messages": [{"role": "user", "content": "<|tool|>"}], "max_tokens": 4},
        )
        assert answer.status_code == 400
        assert "token id 384 does not exist; the model has 384 tokens, and none for <|tool|> (id 384)." in answer.text


def test_a_template_that_writes_it_is_found_whatever_the_rows_are(unresized: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(unresized, tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{{ '<|tool|>' if add_generation_prompt }}")
    config = a_training_config(folder, tmp_path / "out", dataset={"inline": '{"text": "Any text"}\n'})
    (failure,) = run_preflight(config).failures
    assert failure.reason is Reason.MODEL_INVALID
    assert "its tokenizer or chat template writes the token <|tool|> (id 384)" in failure.message
