"""`make check-vllm`: vLLM as a peer and as the engine of our server.

As a peer: an adapter of our trainer says the same under vLLM, under plain transformers and peft, and under our server. A small model learns the sample's support tickets for a few steps, enough to change what it says; all three then answer the
same messages greedily, in float32, and have to agree in every token. As an engine: the tests of any engine pass with it.
"""

import json
import shutil
import time
from pathlib import Path

from lab.bench.serving import workload

workload.prepare_environment()

from lab.bench.serving import vllm_peer  # noqa: E402 - torch reads the environment when it is imported
from lab.bench.serving.engines import Answers, Ours, Peft  # noqa: E402
from lab.bench.serving.workload import REPOSITORY, WORK, Ask, real_model  # noqa: E402
from lab.figures import Figure, record  # noqa: E402

DATA = REPOSITORY / "crds" / "samples" / "data"
STEPS = 12
PROMPTS = 20
RANK = 8
TOKENS = 16
"""Longest answer."""
LEAST_TESTS = 150
"""Fewer mean that they were not found."""


def main() -> int:
    """Train, ask, compare, record; 1 if a token differs."""
    started = time.monotonic()
    vllm_peer.ensure_environment()
    as_engine = vllm_peer.run_engine_tests()
    model = real_model()
    adapter = train(model)
    requests = messages(model)
    stock = Peft(model, adapter)
    expected = stock.one_by_one(requests)
    ours = Ours(model, {"tickets": adapter})
    from_ours = ours.answer(requests)
    ours.service.close()
    from_vllm = vllm_peer.answer(model, {"tickets": adapter}, RANK, requests, rounds=0, eager=True).answers
    changed = difference(expected, stock.without_adapter(requests))
    figures = [
        Figure("prompts", len(requests), "prompts", "higher", must=16),
        Figure("answers that the adapter changes", changed, "answers", "higher", must=len(requests) // 2),
        *(
            Figure(f"answers of {name} that differ from peft's", difference(expected, said), "answers", "lower", must=0)
            for name, said in (("vLLM with LoRA", from_vllm), ("our server", from_ours))
        ),
        Figure("tests of any engine that pass with vLLM", as_engine.passed, "tests", "higher", must=LEAST_TESTS),
        Figure("tests of any engine that fail with vLLM", len(as_engine.failed), "tests", "lower", must=0),
    ]
    path = record("vllm", figures, time.monotonic() - started)
    for figure in figures:
        print(f"{figure.name:<48} {figure.value:>4} {'FALLS SHORT' if figure.falls_short else ''}")
    print(f"{time.monotonic() - started:.0f} s in all; recorded in {path.relative_to(REPOSITORY)}")
    return 1 if any(figure.falls_short for figure in figures) else 0


def train(model: Path) -> Path:
    """By the pipeline, as a job would."""
    from finetune_api.training import TrainingConfig
    from finetune_trainer.training import FinetuningPipeline

    output = WORK / "check-vllm"
    shutil.rmtree(output, ignore_errors=True)
    config = TrainingConfig.model_validate(
        {
            "model": {"path": str(model)},
            "dataset": {"path": str(DATA / "support-tickets.train.jsonl")},
            "lora": {"rank": RANK},
            "hyperparameters": {"maxSteps": STEPS, "batchSize": 4, "learningRate": 0.003, "precision": "float32"},
            "output": {"directory": str(output), "adapterName": "tickets"},
        }
    )
    outcome = FinetuningPipeline(config, run_id="run").run()
    assert outcome.adapter
    return output / outcome.adapter.path


def messages(model: Path) -> list[Ask]:
    """The held-out messages, as the chat template renders them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [json.loads(line) for line in (DATA / "support-tickets.heldout.jsonl").read_text().splitlines()]
    chats = [[{"role": "user", "content": row["prompt"]}] for row in rows[:PROMPTS]]
    rendered = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    return [Ask(list(ids), TOKENS, "tickets") for ids in rendered]


def difference(first: Answers, second: Answers) -> int:
    """How many answers are not the same, token by token."""
    return sum(a != b for a, b in zip(first, second, strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
