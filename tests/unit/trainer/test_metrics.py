"""Metrics of generated answers: which there are, what they say, and that none of them costs an adapter."""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.outcome import Outcome, Result
from finetune_api.reasons import Reason
from finetune_trainer.data import IGNORED, TokenRow
from finetune_trainer.errors import TrainingError
from finetune_trainer.evaluation.answer_metrics import (
    answer_match,
    check_metrics,
    compute_metrics,
    known_metrics,
    rouge_l,
    token_f1,
)
from finetune_trainer.evaluation.prompts import Prompt, find_prompts
from finetune_trainer.preflight import run_preflight
from finetune_trainer.reporting.progress import LogReporter
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.tasks.finetuning_task import run_finetuning
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.tiny_model import LINES, as_jsonl, chat_rows
from lab.fixtures.training_runs import a_training_config, write_config

PACKAGE = """
def shouts(predictions, references):
    assert len(predictions) == len(references)
    return sum(text.isupper() for text in predictions) / len(predictions)

def raises(predictions, references):
    raise KeyError("weights")

def infinite(predictions, references):
    return float("inf")

def says_nothing(predictions, references):
    return None

def fails_later(predictions, references):
    return 1 / (len(predictions) == 2)
"""
ENTRY_POINTS = """[finetune_trainer.metrics]
shouts = our_metrics:shouts
raises = our_metrics:raises
infinite = our_metrics:infinite
says_nothing = our_metrics:says_nothing
fails_later = our_metrics:fails_later
gone = our_metrics.nowhere:gone
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that brings metrics, as pip leaves it."""
    site = a_distribution(tmp_path / "site", "our-metrics", ENTRY_POINTS)
    (site / "our_metrics.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(site)
    yield
    sys.modules.pop("our_metrics", None)


def a_distribution(site: Path, name: str, entry_points: str) -> Path:
    information = site / f"{name.replace('-', '_')}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(entry_points)
    return site


def a_config(*metrics: str, **changes: Any) -> Any:
    rows = {"evaluation": {"inline": as_jsonl(chat_rows(4))}, "evaluationSettings": {"metrics": list(metrics)}}
    return a_training_config(Path("/model"), Path("/output"), **{**rows, **changes})


def test_words_are_compared_in_any_order_or_in_theirs() -> None:
    assert token_f1(["The cat, sat!", "one"], ["sat the CAT", "two"]) == 0.5
    assert rouge_l(["a b c d"], ["a c x d"]) == 0.75
    assert rouge_l(["d c b a"], ["a b c d"]) == 0.25
    assert token_f1(["", "a"], ["", ""]) == 0.5
    assert answer_match(["#Crash  [APP]\n", "no"], [" #crash [app]", "yes"]) == 0.5


@pytest.mark.parametrize(
    ("prediction", "reference", "common"),
    [
        ("我们明天发货。", "我们今天发货", 5 / 6),
        ("データをほぞんする", "データをけす", 2 * 5 / (9 + 6)),
        ("ฉันชอบแมว", "ฉันชอบหมา", 6 / 8),
        ("ខ្ញុំទៅផ្ទះ", "ខ្ញុំទៅផ្សារ", 2 * 4 / (5 + 6)),
        ("iPhone手机有3部", "iPhone手机有2部", 5 / 6),
        ("हिन्दी में", "हिन्दू में", 1 / 2),
        ("한국어 문장", "한국의 문장", 1 / 2),
        ("It's 3.14_a", "it s 3 14_A", 1),
    ],
)
def test_where_no_space_ends_a_word_characters_are_compared(prediction: str, reference: str, common: float) -> None:
    assert token_f1([prediction], [reference]) == pytest.approx(common)
    assert rouge_l([prediction], [reference]) == pytest.approx(common)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abcd")))
def test_rouge_l_is_that_of_the_longest_common_subsequence(predicted: list[str], wanted: list[str]) -> None:
    @functools.cache
    def longest(i: int, j: int) -> int:
        """Of the first i and j words, as the textbooks define it."""
        if not i or not j:
            return 0
        if predicted[i - 1] == wanted[j - 1]:
            return longest(i - 1, j - 1) + 1
        return max(longest(i - 1, j), longest(i, j - 1))

    words = len(predicted) + len(wanted)
    expected = 2 * longest(len(predicted), len(wanted)) / words if words else 1
    assert rouge_l([" ".join(predicted)], [" ".join(wanted)]) == pytest.approx(expected)


def test_rouge_l_of_two_books_is_a_matter_of_a_moment() -> None:
    book = [str(n % 2000) for n in range(8000)]
    began = time.process_time()
    assert rouge_l([" ".join(book)], [" ".join(reversed(book))]) > 0
    assert time.process_time() - began < 2


@pytest.mark.usefixtures("package")
def test_packages_add_metrics() -> None:
    assert {"exact_match", "answer_match", "token_f1", "rouge_l", "shouts"} <= set(known_metrics())
    check_metrics(a_config("shouts", "exact_match", "token_f1"))
    assert compute_metrics(["shouts", "answer_match"], ["YES", "no"], ["yes", "maybe"], lambda: None).values == {
        "shouts": 0.5,
        "answer_match": 0.5,
    }


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blue", "names blue, which is not installed; installed are answer_match, exact_match, "),
        ("raises", "raises KeyError ('weights') for a trial"),
        ("infinite", "returns inf for a trial"),
        ("says_nothing", "raises TypeError"),
        ("gone", "our_metrics.nowhere:gone cannot be imported"),
    ],
)
def test_a_metric_that_cannot_be_measured_is_refused_before_training(name: str, expected: str) -> None:
    with pytest.raises(TrainingError) as refused:
        check_metrics(a_config("shouts", name))
    assert refused.value.reason is Reason.SPEC_INVALID
    assert "evaluation.metrics" in refused.value.message
    assert expected in refused.value.message


@pytest.mark.usefixtures("package")
def test_a_metric_that_two_packages_bring_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = "[finetune_trainer.metrics]\nshouts = other:shouts\nrouge_l = other:rouge\n"
    monkeypatch.syspath_prepend(a_distribution(tmp_path / "second", "other-metrics", points))
    with pytest.raises(
        TrainingError, match=r"provides: other-metrics 1\.0 \(other:shouts\) and our-metrics 1\.0 \(our_"
    ):
        check_metrics(a_config("shouts"))
    with pytest.raises(
        TrainingError, match=r"names rouge_l, .*: finetune-trainer .* and other-metrics 1\.0 \(other:rouge\)\. Use"
    ):
        check_metrics(a_config("rouge_l"))
    check_metrics(a_config("token_f1"))


def test_pairs_have_no_one_wanted_answer() -> None:
    pairs = as_jsonl([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    rows = {"dataset": {"inline": pairs}, "evaluation": {"inline": pairs}, "dpo": {}}
    with pytest.raises(TrainingError, match=r"rouge_l, .* the pairs of method.dpo have two"):
        check_metrics(a_config("rouge_l", **rows))


@pytest.mark.parametrize("name", ["Accuracy", "exact-match", "", "a" * 64])
def test_a_name_is_a_python_name(name: str) -> None:
    with pytest.raises(ValidationError, match="metrics"):
        a_config(name)


@pytest.mark.usefixtures("package")
def test_a_metric_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    names = ["raises", "token_f1", "infinite", "says_nothing", "fails_later", "blue"]
    results = compute_metrics(names, ["a", "b", "c"], ["a", "b", "d"], lambda: None)
    assert results.values == {"token_f1": pytest.approx(2 / 3)}
    assert [*results.problems] == [name for name in names if name != "token_f1"]
    assert (results.problems["raises"], results.problems["infinite"]) == ("raises KeyError ('weights')", "it is inf")
    left_out = [record.getMessage() for record in caplog.records]
    assert "name=raises problem=raises KeyError ('weights')" in left_out[0]
    assert [text.split()[3] for text in left_out] == [f"name={name}" for name in names if name != "token_f1"]


def test_a_stop_is_heeded_before_the_next_metric() -> None:
    stop = StopSignal()
    calls = iter([lambda: None, stop.request])

    def check_stop() -> None:
        next(calls)()
        stop.check("Stopped.")

    with pytest.raises(TrainingError, match=r"Stopped\."):
        compute_metrics(["token_f1", "rouge_l", "answer_match"], ["a"], ["a"], check_stop)
    assert next(calls, None) is None


def test_a_prompt_is_a_row_up_to_its_last_answer() -> None:
    chat = TokenRow([1, 2, 3, 4, 5, 6, 7], [IGNORED, 2, 3, IGNORED, 5, 6, IGNORED])
    text = TokenRow([1, 2, 3], [1, 2, 3])
    assert find_prompts([chat, text], 9) == [Prompt([1, 2, 3, 4], [5, 6])]
    numbered = [TokenRow([i, 9], [IGNORED, 9]) for i in range(10)]
    assert [prompt.ids for prompt in find_prompts(numbered, 4)] == [[0], [2], [5], [7]]


def test_rows_without_a_prompt_take_no_place_of_one_that_has() -> None:
    text, asking = TokenRow([1, 2], [1, 2]), [TokenRow([i, 9], [IGNORED, 9]) for i in range(6)]
    rows = [row for question in asking for row in (text, text, text, question)]
    assert [prompt.ids for prompt in find_prompts(rows, 4)] == [[0], [1], [3], [4]]
    assert len(find_prompts(rows, 100)) == 6


@pytest.mark.model
@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": {"inline": as_jsonl([{"text": line} for line in LINES])},
         "evaluation": {"inline": as_jsonl([{"text": LINES[0]}])}},
        {"hyperparameters": {"lossOn": "all"}},
    ],
    ids=["text", "loss on all"],
)  # fmt: skip
def test_rows_without_a_prompt_are_refused_before_training(
    changes: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    config = a_config("token_f1", model={"path": str(tiny_model)}, output=an_output(tmp_path), **changes)
    failures = run_preflight(config).failures
    assert [failure.reason for failure in failures] == [Reason.SPEC_INVALID]
    assert "token_f1, which compares answers, but no held-out row has a prompt" in failures[0].message
    with pytest.raises(TrainingError, match="no held-out row has a prompt"):
        FinetuningPipeline(config).run()


@pytest.mark.model
def test_answers_are_what_transformers_generates_and_the_adapter_does_not_know_of_them(
    tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    learnt = as_jsonl(chat_rows(4))
    other = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": q}]} for q in LINES[:5]]
    rows = learnt + as_jsonl(other)
    sections: dict[str, Any] = {
        "model": {"path": str(tiny_model)},
        "dataset": {"inline": learnt},
        "evaluation": {"inline": rows},
        "lora": {"dropout": 0.1},
        "hyperparameters": {"batchSize": 4, "learningRate": 0.03, "maxSteps": 24},
    }
    plain = FinetuningPipeline(a_config(output=an_output(tmp_path / "plain"), **sections))
    without = plain.run()
    settings = {"metrics": ["answer_match", "exact_match", "rouge_l"], "maxNewTokens": 60}
    scored = FinetuningPipeline(
        a_config(output=an_output(tmp_path / "scored"), evaluationSettings=settings, **sections)
    )
    outcome = scored.run()

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), scored.store.adapter).eval()
    predictions, references = [], []
    for line in rows.splitlines():
        question, answer = json.loads(line)["messages"]
        prompt = tokenizer(f"<|im_start|>user\n{question['content']}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        generated = model.generate(input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=60)
        predictions.append(tokenizer.decode(generated[0][len(prompt) :], skip_special_tokens=True))
        references.append(answer["content"])
    assert 0 < outcome.metrics["answer_match"] < 1
    assert outcome.metrics["answer_match"] == pytest.approx(answer_match(predictions, references), abs=1e-6)
    assert outcome.metrics["rouge_l"] == pytest.approx(rouge_l(predictions, references), abs=1e-6)
    assert outcome.metrics.keys() - without.metrics.keys() == set(settings["metrics"])
    page = (scored.store.adapter / "report.html").read_text()
    assert f"<th>ROUGE-L of generated answers</th><td>{outcome.metrics['rouge_l']:.4f}</td>" in page
    for name in ("adapter_model.safetensors", "fingerprint.json"):
        assert (plain.store.adapter / name).read_bytes() == (scored.store.adapter / name).read_bytes()


@contextmanager
def a_model_whose_answers(end: Callable[[], None]) -> Iterator[None]:
    """It trains as ever; `end` is called for each token that is generated."""
    from transformers import LlamaForCausalLM

    prepare = LlamaForCausalLM.prepare_inputs_for_generation

    def prepared(self: Any, *args: Any, **kwargs: Any) -> Any:
        end()
        return prepare(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "prepare_inputs_for_generation", prepared)
        yield


@pytest.mark.model
def test_a_model_that_cannot_answer_costs_its_metrics_and_not_the_adapter(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("no cache")

    sections = {"model": {"path": str(tiny_model)}, "evaluation": {"inline": as_jsonl(chat_rows(4))}}
    settings = {"metrics": ["token_f1", "exact_match", "rouge_l"]}
    config = a_config(output=an_output(tmp_path), evaluationSettings=settings, **sections)
    with a_model_whose_answers(fail):
        outcome = run_finetuning(config, LogReporter(), StopSignal())
    assert outcome.result is Result.SUCCEEDED, outcome
    assert outcome.metrics.keys() == {"train_loss", "eval_loss", "exact_match"}
    problem = "generating answers raised ValueError (no cache): see the traceback in the log, or use exact_match"
    assert f"Not measured: rouge_l, token_f1 ({problem}" in outcome.message
    assert f"left out names=token_f1,rouge_l problem={problem}" in caplog.text
    assert outcome.adapter is not None
    assert outcome.adapter.fingerprint is not None
    adapter = tmp_path / outcome.adapter.path
    unmeasured = json.loads((adapter / "run.json").read_text())["unmeasured"]
    assert unmeasured.keys() == {"token_f1", "rouge_l"}
    assert problem in unmeasured["rouge_l"]
    assert "<td>token_f1, rouge_l (see run.json)</td>" in (adapter / "report.html").read_text()


IN_A_CONTAINER = """
import sys
from pathlib import Path
from finetune_api.training import TrainingConfig
from finetune_model import process
from finetune_trainer.training import FinetuningPipeline

class Pipeline(FinetuningPipeline):
    def score_predictions(self, *what):
        import finetune_trainer.evaluation.predictions
        status = Path("/proc/self/status").read_text().splitlines()
        used = int(next(line for line in status if line.startswith("RssAnon")).split()[1]) << 10
        limit = Path(sys.argv[2])
        limit.write_text(str(int((used + (512 << 10)) / 0.97)))
        process.MEMORY_LIMITS = (limit,)
        return super().score_predictions(*what)

print(Pipeline(TrainingConfig.model_validate_json(Path(sys.argv[1]).read_text())).run().to_termination_message())
"""
"""A training in a container that has 512 KiB more than are used when answers are to be generated."""


@pytest.mark.model
def test_memory_that_does_not_suffice_for_one_answer_costs_its_metrics_and_not_the_adapter(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = [{"messages": [{"role": "user", "content": "3 " * 200}, {"role": "assistant", "content": "Yes."}]}]
    sections = {"model": {"path": str(tiny_model)}, "evaluation": {"inline": as_jsonl(rows)}}
    config = a_config("token_f1", output=an_output(tmp_path), **sections)
    file = write_config(config, tmp_path / "config.json")
    command = [sys.executable, "-c", IN_A_CONTAINER, str(file), str(tmp_path / "limit")]
    # Small blocks, too, are asked of the kernel, instead of being taken from what was freed before.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "4096"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    outcome = Outcome.model_validate_json(done.stdout.splitlines()[-1])
    assert "Not measured: token_f1 (generating answers raised RuntimeError" in outcome.message
    assert "can't allocate memory" in outcome.message
    assert "lower evaluation.maxNewTokens, or give the trainer more memory" in outcome.message
    assert outcome.metrics.keys() == {"train_loss", "eval_loss"}
    assert outcome.adapter is not None
    assert outcome.adapter.fingerprint is not None


@pytest.mark.model
def test_a_stop_while_answers_are_generated_interrupts_the_run(tiny_model: Path, tmp_path: Path) -> None:
    stop = StopSignal()
    config = a_config("token_f1", model={"path": str(tiny_model)}, output=an_output(tmp_path))
    with a_model_whose_answers(stop.request):
        outcome = run_finetuning(config, LogReporter(), stop)
    assert (outcome.result, outcome.reason, outcome.adapter) == (Result.INTERRUPTED, Reason.INTERRUPTED, None)


@pytest.mark.model
def test_neither_the_padding_nor_a_setting_nor_the_end_of_the_models_positions_changes_an_answer() -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    from finetune_trainer.evaluation.predictions import generate_predictions
    from lab.fixtures.tiny_model import make_tiny_tokenizer

    # Absolute positions: there is no token after the last of them.
    length, most = 64, 20
    tokenizer = make_tiny_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=length, initializer_range=0.3, **ends
    )
    base: Any = SimpleNamespace(model=GPT2LMHeadModel(config), tokenizer=tokenizer, pad_token_id=tokenizer.eos_token_id)
    lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    model = get_peft_model(base.model, lora).eval()
    prompts = [Prompt(torch.randint(3, 256, (tokens,)).tolist(), [3]) for tokens in (3, 40, 9, 63, 44, 45, 60, 60)]
    expected = []
    for prompt in sorted(prompts, key=lambda prompt: len(prompt.ids)):
        ids = list(prompt.ids)
        while len(ids) < min(length, len(prompt.ids) + most) and tokenizer.eos_token_id not in ids:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(tokenizer.decode(ids[len(prompt.ids) :], skip_special_tokens=True))
    own = base.model.generation_config
    own.update(repetition_penalty=1.5, num_beams=2, do_sample=True, stop_strings=["a"], num_return_sequences=2)
    answers, _ = generate_predictions(model, base, prompts, most, lambda: None)
    assert answers == expected
    assert base.model.generation_config is own

    stop = StopSignal()
    calls = iter([lambda: None, lambda: None, stop.request])

    def check_stop() -> None:
        next(calls)()
        stop.check("Stopped.")

    with pytest.raises(TrainingError, match=r"Stopped\."):
        generate_predictions(model, base, prompts[:1], most, check_stop)
    assert base.model.generation_config is own


def an_output(folder: Path) -> dict[str, str]:
    return {"directory": str(folder), "adapterName": "support-tone"}
