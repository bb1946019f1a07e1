"""The folder that the trainer commits is an ordinary peft adapter, and the server says with it what peft says."""

from pathlib import Path

import pytest

from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig
from lab.fixtures.tiny_model import as_jsonl, chat_rows, make_tiny_model
from lab.fixtures.training_runs import a_training_config

pytestmark = pytest.mark.model

TOKENS = 24


def test_plain_peft_and_the_server_answer_a_trained_adapter_alike(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    adapter = train(base, tmp_path / "adapters")
    questions = [row["messages"][0]["content"] for row in chat_rows(8)]
    expected = peft_answers(base, adapter, questions)
    assert server_answers(base, adapter, questions) == expected
    assert peft_answers(base, None, questions) != expected


def train(base: Path, output: Path) -> Path:
    from finetune_trainer.training import FinetuningPipeline

    config = a_training_config(
        base,
        output,
        dataset={"inline": as_jsonl(chat_rows(8))},
        hyperparameters={"batchSize": 8, "learningRate": 0.02, "maxSteps": 10},
    )
    outcome = FinetuningPipeline(config).run()
    assert outcome.adapter
    return output / outcome.adapter.path


def peft_answers(base: Path, adapter: Path | None, questions: list[str]) -> list[str]:
    """Greedy answers by transformers and peft, without any of our code; of the base model if there is no adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    model = (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter or base)
    answers = []
    for question in questions:
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            ids = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return answers


def server_answers(base: Path, adapter: Path, questions: list[str]) -> list[str]:
    from finetune_inference.config import Settings
    from finetune_inference.inference import InferenceService

    served = [ServedAdapter(name="tuned", path=str(adapter))]
    config = ServingConfig(model=ServedModel(name="base", path=str(base)), adapters=served)
    service = InferenceService(config, Settings(threads=1))
    try:
        service.load()
        return [service.process_text(q, model="tuned", max_tokens=TOKENS).text for q in questions]
    finally:
        service.close()
