"""DPO: its loss on packed pairs is that of the paper on padded ones, and a run learns what is preferred."""

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_api.outcome import Result
from finetune_api.reasons import Reason
from finetune_trainer import data
from finetune_trainer.data import IGNORED, TokenRow
from finetune_trainer.data.pairs import Pair
from finetune_trainer.errors import TrainingError
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.tasks.finetuning_task import run_finetuning
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.reporters import AtStep, RecordingReporter
from lab.fixtures.tiny_model import LINES, as_jsonl, chat_rows
from lab.fixtures.training_runs import a_training_config, an_attempt

BETA = 0.3


def some_pairs(seed: int, count: int = 5) -> list[Pair]:
    """Pairs under one header: some prompts are equal, some answers begin alike, one is the beginning of the other."""
    rng = random.Random(seed)  # noqa: S311

    def tokens(least: int, most: int) -> list[int]:
        return [rng.randrange(5, 300) for _ in range(rng.randrange(least, most))]

    header = tokens(9, 10)
    prompts = [header + tokens(3, 12) for _ in range(2)]
    pairs = []
    for i in range(count):
        prompt, chosen = prompts[i % 2], tokens(9, 14)
        rejected = chosen[:8] if i == 0 else chosen[:8] + tokens(1, 4) if i == 1 else tokens(2, 9)
        chosen_row, rejected_row = (
            TokenRow(prompt + answer, [IGNORED] * len(prompt) + answer) for answer in (chosen, rejected)
        )
        pairs.append((chosen_row, rejected_row))
    return pairs


@pytest.fixture(scope="module")
def model() -> Any:
    """A random model with an adapter that does something, so that model and reference differ."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(LlamaForCausalLM(config), lora)


def plain_loss(model: Any, pairs: list[Pair]) -> Any:
    """Equation 7 of arXiv 2305.18290 on rows that are padded to the longest, each answer in a pass of its own."""
    import torch

    def log_probabilities(rows: list[TokenRow]) -> Any:
        width = max(len(row.input_ids) for row in rows)
        ids = torch.tensor([[*row.input_ids, *[0] * (width - len(row.input_ids))] for row in rows])
        labels = torch.tensor([[*row.labels, *[IGNORED] * (width - len(row.labels))] for row in rows])
        mask = torch.tensor([[1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in rows])
        logs = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
        targets = labels[:, 1:]
        return (logs.gather(2, targets.clamp(min=0)[..., None])[..., 0] * (targets != IGNORED)).sum(1)

    chosen, rejected = ([pair[side] for pair in pairs] for side in (0, 1))
    with torch.no_grad(), model.disable_adapter():
        reference = log_probabilities(chosen) - log_probabilities(rejected)
    policy = log_probabilities(chosen) - log_probabilities(rejected)
    return -torch.log(torch.sigmoid(BETA * (policy - reference))).mean()


def gradients(model: Any, loss: Any) -> Any:
    import torch

    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.model
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_loss_and_gradients_are_those_of_the_paper_on_padded_pairs(model: Any, kind: str, seed: int) -> None:
    import torch
    from torch.nn.functional import logsigmoid

    from finetune_trainer.batches.layout import PackedLayout, PaddedLayout
    from finetune_trainer.loop.dpo import PairLayout, Reference, reward_margins

    pairs = some_pairs(seed)
    base: Any = SimpleNamespace(model=model.get_base_model(), pad_token_id=0)
    layout = PairLayout(PackedLayout() if kind == "packed" else PaddedLayout(base))
    expected = plain_loss(model, pairs)
    expected_gradients = gradients(model, expected)
    batch = layout.collate(pairs)
    with layout.applied(model):
        loss = -logsigmoid(reward_margins(model, model, batch, BETA, Reference())).mean()
        found = gradients(model, loss)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    assert torch.cosine_similarity(found, expected_gradients, dim=0) > 0.9999
    torch.testing.assert_close(found, expected_gradients, rtol=1e-3, atol=1e-4)
    assert abs(float(expected.detach()) - math.log(2)) > 0.01, "model and reference differ"
    if kind == "packed":
        rows = [row for pair in pairs for row in pair]
        assert batch["input_ids"].shape[1] < sum(len(row.input_ids) for row in rows) - 5 * 9, "prompts are shared"


def preferring(model: Path, output: Path, *, attempt: int = 1, **changes: Any) -> Any:
    """Four prompts, one of two answers to each of which is better; the pairs are held out, too, to be measured."""
    rows = [
        {"prompt": LINES[i], "chosen": LINES[i + 1], "rejected": LINES[i + 5]}
        if i % 2
        else {
            "prompt": [{"role": "user", "content": LINES[i]}],
            "chosen": [{"role": "assistant", "content": LINES[i + 1]}],
            "rejected": [{"role": "assistant", "content": LINES[i + 5]}],
        }
        for i in range(4)
    ]
    document = {
        "job": an_attempt(attempt),
        "dataset": {"inline": as_jsonl(rows)},
        "evaluation": {"inline": as_jsonl(rows)},
        "evaluationSettings": {"evalSteps": 4},
        "dpo": {"beta": 0.1},
        "hyperparameters": {"batchSize": 4, "microBatchSize": 2, "learningRate": 0.005, "maxSteps": 12},
    }
    return a_training_config(model, output, **document | changes)


@pytest.mark.model
def test_a_run_widens_the_margin_of_the_preferred_answers_and_an_interruption_changes_nothing(
    tiny_model: Path, tmp_path: Path
) -> None:
    reporter = RecordingReporter()
    pipeline = FinetuningPipeline(preferring(tiny_model, tmp_path / "straight"), reporter=reporter)
    outcome = pipeline.run()
    losses = [*reporter.losses.values()]
    # Untrained, model and reference are one: every margin is 0.
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < 0.5
    assert outcome.metrics["eval_loss"] < 0.5
    assert outcome.metrics["reward_accuracy"] == 1
    assert outcome.metrics["reward_margin"] > 0.5
    assert "<th>method</th><td>DPO, beta 0.1</td>" in (pipeline.store.adapter / "report.html").read_text()

    stop = StopSignal()
    first = run_finetuning(preferring(tiny_model, tmp_path / "broken"), AtStep(5, stop.request), stop)
    assert (first.result, first.step) == (Result.INTERRUPTED, 5)
    again = FinetuningPipeline(preferring(tiny_model, tmp_path / "broken", attempt=2))
    assert again.run().metrics == outcome.metrics
    for name in ("adapter_model.safetensors", "fingerprint.json", "report.html"):
        assert (again.store.adapter / name).read_bytes() == (pipeline.store.adapter / name).read_bytes(), name


@pytest.mark.model
def test_how_a_step_of_pairs_is_cut_into_micro_batches_does_not_change_its_result(
    tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    tuned = []
    for micro in (1, 4):
        hyperparameters = {"batchSize": 4, "microBatchSize": micro, "learningRate": 0.001, "maxSteps": 2}
        config = preferring(tiny_model, tmp_path / str(micro), hyperparameters=hyperparameters)
        pipeline = FinetuningPipeline(config)
        pipeline.run()
        tuned.append(load_file(pipeline.store.adapter / "adapter_model.safetensors"))
    for name, value in tuned[0].items():
        difference = (tuned[1][name] - value).abs()
        # Adam makes a whole step of a gradient that is all rounding, and on some CPUs one of a thousand elements has such a one.
        assert int((difference > 2e-6).sum()) <= value.numel() // 1000, name
        assert float(difference.norm()) <= 0.01 * float(value.norm()), name


@pytest.mark.model
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset": {"inline": as_jsonl(chat_rows(2))}}, "method.dpo learns from preference pairs"),
        ({"dpo": None}, "Set method.dpo to learn from pairs"),
        (
            {"hyperparameters": {"maxLength": 25}},
            "4 answers of dataset, the first of them in line 1, lose every token when cut to hyperparameters.maxLength=25",
        ),
    ],
)
def test_rows_and_method_that_do_not_go_together_are_refused(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(TrainingError) as caught:
        FinetuningPipeline(preferring(tiny_model, tmp_path, **changes)).run()
    assert caught.value.reason is Reason.DATASET_INVALID
    assert expected in caught.value.message


@pytest.mark.model
def test_only_the_answers_of_a_pair_carry_loss(tokenizer: Any) -> None:
    turns = [{"role": role, "content": text} for role, text in (("user", "A"), ("assistant", "B"), ("user", "C"))]
    yes, no = ([{"role": "assistant", "content": text}] for text in ("Yes", "No"))
    examples = data.answers_as_examples([data.Example("line 1", prompt=turns, chosen=yes, rejected=no)])
    rows = data.tokenize(examples, tokenizer, max_length=99, loss_on="completion").rows
    learnt = [tokenizer.decode([t for t in row.labels if t != IGNORED]) for row in rows]
    assert learnt == ["Yes<|im_end|>", "No<|im_end|>"]


@pytest.mark.model
def test_text_among_chats_is_a_chat_too_and_needs_a_template(tokenizer: Any, plain_tokenizer: Any) -> None:
    yes, no = ([{"role": "assistant", "content": text}] for text in ("Yes", "No"))
    pairs = [
        data.Example("line 1", prompt="A", chosen="Yes", rejected="No"),
        data.Example("line 2", prompt=[{"role": "user", "content": "A"}], chosen=yes, rejected=no),
    ]
    rows = data.tokenize(data.answers_as_examples(pairs), tokenizer, max_length=99, loss_on="completion").rows
    assert [row.input_ids.tolist() for row in rows[:2]] == [row.input_ids.tolist() for row in rows[2:4]]
    with pytest.raises(TrainingError, match="the model has no chat template"):
        data.tokenize(data.answers_as_examples(pairs), plain_tokenizer, max_length=99, loss_on="completion")
    rows = data.tokenize(data.answers_as_examples(pairs[:1]), plain_tokenizer, max_length=99, loss_on="completion").rows
    assert plain_tokenizer.decode(rows[0].input_ids) == "AYes<|im_end|>"
