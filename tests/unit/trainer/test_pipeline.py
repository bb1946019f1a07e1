"""The whole run with a real tiny model: what it leaves behind, what it refuses, and that interruption changes nothing."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from finetune_api.artifacts import read_verified
from finetune_api.contract import MAX_TERMINATION_BYTES
from finetune_api.fingerprint import MIN_EFFECT, Fingerprint, Observation, Verdict, judge
from finetune_api.outcome import Outcome, Result
from finetune_api.reasons import Reason
from finetune_trainer.errors import TrainingError
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.store.run_store import Committed, RunStore
from finetune_trainer.tasks.finetuning_task import run_finetuning
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.reporters import AtStep, RecordingReporter
from lab.fixtures.tiny_model import as_jsonl, chat_rows
from lab.fixtures.training_runs import FinishedRun, a_training_config, an_attempt

pytestmark = pytest.mark.model


def weights(config: Any) -> bytes:
    """The committed weights of a configuration's run."""
    return (Path(config.output.directory) / "support-tone" / "uid-1" / "adapter_model.safetensors").read_bytes()


# --- What a finished run leaves behind


def test_a_finished_run_leaves_one_whole_adapter_with_its_records_and_no_checkpoints(finished: FinishedRun) -> None:
    manifest, digest = read_verified(finished.adapter)
    assert (manifest.kind, manifest.job_uid, manifest.attempt, manifest.step) == ("adapter", "uid-1", 1, 40)
    assert finished.outcome.adapter.path == "support-tone/uid-1"
    assert finished.outcome.adapter.digest == digest
    assert {entry.path for entry in manifest.files} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "dataset-report.json",
        "fingerprint.json",
        "report.html",
        "run.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    output = Path(finished.config.output.directory)
    assert sorted(str(p.relative_to(output)) for p in output.glob("*/*/*") if ".jobs" in p.parts) == [
        ".jobs/uid-1/attempt"
    ]


def test_training_lowers_the_loss_and_reports_each_step(finished: FinishedRun) -> None:
    steps = [p.step for p in finished.progress]
    assert steps == list(range(1, 41))
    assert finished.progress[-1].loss < finished.progress[0].loss / 2
    assert finished.outcome.metrics["train_loss"] < finished.progress[0].loss / 2
    assert finished.progress[-1].total_steps == 40
    assert finished.progress[-1].eta_seconds == 0
    assert finished.outcome.trained_tokens > 0


def test_held_out_rows_give_an_eval_loss_per_token(finished: FinishedRun, tiny_model: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), finished.adapter).eval()
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt + "Bye<|im_end|>", return_tensors="pt").input_ids
    labels = ids.clone()
    labels[:, : len(tokenizer(prompt).input_ids)] = -100
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=labels).loss)
    assert finished.outcome.metrics["eval_loss"] == pytest.approx(expected, abs=1e-4)


def test_the_record_says_what_made_the_adapter_without_repeating_the_rows(finished: FinishedRun) -> None:
    record = json.loads((finished.adapter / "run.json").read_text())
    assert record["dataset"]["format"] == "messages"
    assert record["dataset"]["digest"].startswith("sha256:")
    assert record["base"]["revision"].startswith("sha256:")
    assert record["config"]["hyperparameters"]["maxSteps"] == 40
    assert record["environment"]["packages"].keys() >= {"torch", "transformers", "peft"}
    assert "password" not in json.dumps(record)


def test_the_outcome_with_its_fingerprint_fits_the_termination_message(finished: FinishedRun) -> None:
    message = finished.outcome.to_termination_message()
    assert len(message.encode()) <= MAX_TERMINATION_BYTES - 512
    assert Outcome.model_validate_json(message) == finished.outcome


def test_an_outcome_that_grows_too_large_loses_probes_but_never_its_adapter(finished: FinishedRun) -> None:
    from finetune_trainer.reporting.run_record import fit_termination_message

    adapter = finished.outcome.adapter
    probe = adapter.fingerprint.probes[0]
    long = probe.model_copy(update={"token_ids": [100_000 + n for n in range(130)]})
    fingerprint = adapter.fingerprint.model_copy(update={"probes": [long, long, long]})
    outcome = finished.outcome.model_copy(
        update={"adapter": adapter.model_copy(update={"fingerprint": fingerprint}), "message": "m"}
    )
    fitted = fit_termination_message(outcome)
    assert len(fitted.to_termination_message().encode()) <= MAX_TERMINATION_BYTES - 512
    assert fitted.message == "m"
    assert fitted.adapter is not None
    assert fitted.adapter.fingerprint is not None
    assert len(fitted.adapter.fingerprint.probes) == 2


def test_why_metrics_failed_takes_little_room_in_an_outcome_whatever_its_script(
    finished: FinishedRun, tmp_path: Path
) -> None:
    from finetune_trainer.reporting.run_record import make_outcome

    folder = tmp_path / "adapter"
    shutil.copytree(finished.adapter, folder)
    record = json.loads((folder / "run.json").read_text()) | {"unmeasured": {"rouge_l": "字" * 300}}
    (folder / "run.json").write_text(json.dumps(record))
    manifest, digest = read_verified(finished.adapter)
    outcome = make_outcome(Committed(folder, manifest, digest), tmp_path, None)
    said, _, note = outcome.message.partition(" Not measured: ")
    assert said == finished.outcome.message
    assert note.startswith("rouge_l (字")
    assert len(outcome.message.encode()) <= len(said.encode()) + 500


def test_stock_peft_loads_the_adapter_and_gives_the_fingerprints_log_probabilities(
    finished: FinishedRun, tiny_model: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), finished.adapter).eval()

    def scores(token_ids: list[int], prompt_tokens: int) -> list[float]:
        ids = torch.tensor([token_ids])
        with torch.no_grad():
            logs = model(ids).logits[0].float().log_softmax(-1)
        return [float(logs[i - 1, token_ids[i]]) for i in range(prompt_tokens, len(token_ids))]

    fingerprint = Fingerprint.model_validate_json((finished.adapter / "fingerprint.json").read_text())
    observed = []
    for probe in fingerprint.probes:
        tuned = scores(probe.token_ids, probe.prompt_tokens)
        with model.disable_adapter():
            base = scores(probe.token_ids, probe.prompt_tokens)
        assert tuned == pytest.approx(probe.tuned, abs=1e-4)
        assert base == pytest.approx(probe.base, abs=1e-4)
        observed.append(Observation(tuned=tuned, base=base))
    assert fingerprint.effect > MIN_EFFECT
    assert judge(fingerprint, observed)[0] is Verdict.MATCHED
    assert judge(fingerprint, [Observation(o.base, o.base) for o in observed])[0] is Verdict.NO_EFFECT


def test_a_later_attempt_of_a_committed_job_reports_the_same_adapter_without_training(
    finished: FinishedRun, tmp_path: Path
) -> None:
    """And clears away what the attempt that committed it had no time for."""
    output = Path(shutil.copytree(finished.config.output.directory, tmp_path / "out"))
    later = finished.config.model_copy(
        update={
            "job": finished.config.job.model_copy(update={"attempt": 2}),
            "output": finished.config.output.model_copy(update={"directory": str(output)}),
        }
    )
    for leftover in (".jobs/uid-1/checkpoints/step-40", "support-tone/.uid-1.partial-1"):
        shutil.copytree(finished.adapter, output / leftover)
    recorder = AtStep(1, lambda: pytest.fail("it trained again"))
    outcome = FinetuningPipeline(later, reporter=recorder).run()
    assert outcome.adapter == finished.outcome.adapter
    assert outcome.metrics == finished.outcome.metrics
    assert [p.name for p in (output / ".jobs/uid-1").iterdir()] == ["attempt"]
    assert [p.name for p in (output / "support-tone").iterdir()] == ["uid-1"]
    with pytest.raises(TrainingError, match="attempt 2 of the same job has started"):
        FinetuningPipeline(later.model_copy(update={"job": finished.config.job})).run()


def test_a_committed_adapter_is_reported_even_if_nothing_can_be_cleared_away(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: RunStore) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunStore, "open", full)
    assert FinetuningPipeline(finished.config).run().adapter == finished.outcome.adapter


# --- Steps


def test_how_a_step_is_cut_into_micro_batches_does_not_change_its_result(tiny_model: Path, tmp_path: Path) -> None:
    """Rows of unlike length: a mean of means would give another gradient than one mean over all tokens with loss."""
    from safetensors.torch import load

    rows = as_jsonl([{"prompt": "Hi", "completion": "word " * (1 + 7 * n)} for n in range(6)])
    tuned = []
    for micro in (1, 2, 6):
        config = a_training_config(
            tiny_model,
            tmp_path / str(micro),
            dataset={"inline": rows},
            hyperparameters={"batchSize": 6, "microBatchSize": micro, "maxSteps": 2, "learningRate": 0.001},
        )
        FinetuningPipeline(config).run()
        tuned.append(load(weights(config)))
    for other in tuned[1:]:
        for name, value in tuned[0].items():
            assert other[name].numpy() == pytest.approx(value.numpy(), abs=2e-5), name


def test_the_last_step_of_an_epoch_takes_the_rows_that_are_left(tiny_model: Path, tmp_path: Path) -> None:
    config = a_training_config(
        tiny_model,
        tmp_path,
        dataset={"inline": as_jsonl(chat_rows(5))},
        hyperparameters={"batchSize": 4, "epochs": 2, "learningRate": 0.01},
    )
    assert FinetuningPipeline(config).run().step == 4


def test_target_modules_can_be_named(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load

    config = a_training_config(tiny_model, tmp_path, lora={"targetModules": ["v_proj", "q_proj"], "rank": 2})
    FinetuningPipeline(config).run()
    assert {name.split(".")[-3] for name in load(weights(config))} == {"q_proj", "v_proj"}


def test_bfloat16_is_used_when_asked_for_and_the_adapter_stays_in_float32(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load

    hyperparameters = {"batchSize": 4, "learningRate": 0.01, "maxSteps": 2, "precision": "bfloat16"}
    config = a_training_config(tiny_model, tmp_path, hyperparameters=hyperparameters)
    outcome = FinetuningPipeline(config).run()
    assert outcome.adapter is not None
    assert outcome.adapter.fingerprint is not None
    assert outcome.adapter.fingerprint.dtype == "bfloat16"
    assert {value.dtype for value in load(weights(config)).values()} == {torch.float32}


# --- What is refused


@pytest.mark.parametrize(
    ("changes", "reason", "expected"),
    [
        ({"model": {"path": "/nowhere/model"}}, Reason.MODEL_NOT_FOUND, "Model /nowhere/model does not exist"),
        ({"dataset": {"inline": "\n"}}, Reason.DATASET_INVALID, "Dataset is empty"),
        ({"dataset": {"inline": '{"text": 1}'}}, Reason.DATASET_INVALID, "line 1: text is a number, expected text"),
        ({"dataset": {"path": "/nowhere/rows.jsonl"}}, Reason.DATASET_NOT_FOUND, "does not exist"),
        ({"evaluation": {"inline": '{"text": "a"}'}}, Reason.DATASET_INVALID, "Evaluation line 1: column messages is"),
        (
            {"lora": {"targetModules": ["query", "q_proj"]}},
            Reason.TARGET_MODULES_NOT_FOUND,
            "names query, which this model does not have; it has down_proj, embed_tokens, gate_proj, k_proj, lm_head,",
        ),
    ],
)
def test_a_run_that_cannot_succeed_ends_before_training_with_its_reason(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], reason: Reason, expected: str
) -> None:
    outcome = run_finetuning(a_training_config(tiny_model, tmp_path, **changes), RecordingReporter(), StopSignal())
    assert (outcome.result, outcome.reason, outcome.retryable) == (Result.FAILED, reason, False)
    assert expected in outcome.message


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("no config.json", "it has no config.json"),
        ("config.json is not JSON", "its config.json cannot be read"),
        ("not a causal model", "its architecture is BertForSequenceClassification"),
        ("an architecture nobody knows", "does not recognize"),
        ("no safetensors", "it has no *.safetensors weights (pickled weights are never loaded)"),
        ("torn safetensors", "cannot be tuned"),
        ("weights of another model", "cannot be tuned"),
        ("no tokenizer", "cannot be tuned"),
    ],
)
def test_a_folder_that_is_no_causal_language_model_is_refused(
    tiny_model: Path, tmp_path: Path, damage: str, expected: str
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    match damage:
        case "no config.json":
            (model / "config.json").unlink()
        case "config.json is not JSON":
            (model / "config.json").write_text("{")
        case "not a causal model":
            config |= {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
            (model / "config.json").write_text(json.dumps(config))
        case "an architecture nobody knows":
            (model / "config.json").write_text(json.dumps(config | {"model_type": "llama9"}))
        case "no safetensors":
            (model / "model.safetensors").rename(model / "pytorch_model.bin")
        case "torn safetensors":
            os.truncate(model / "model.safetensors", 1000)
        case "weights of another model":
            (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        case _:
            (model / "tokenizer.json").unlink()
            (model / "tokenizer_config.json").unlink()
    with pytest.raises(TrainingError) as caught:
        FinetuningPipeline(a_training_config(model, tmp_path / "out")).run()
    assert caught.value.reason is Reason.MODEL_INVALID
    assert expected in caught.value.message


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    config = a_training_config(model, tmp_path / "out", checkpoint={"everySteps": 1})
    outcome = run_finetuning(config, RecordingReporter(), StopSignal())
    assert (outcome.reason, outcome.retryable, outcome.checkpoint_step) == (Reason.LOSS_DIVERGED, False, None)
    assert "Lower hyperparameters.learningRate" in outcome.message
    assert not (tmp_path / "out/support-tone/uid-1").exists()
    assert list((tmp_path / "out").rglob("*.safetensors")) == []


def test_an_attempt_that_is_overtaken_by_a_newer_one_commits_nothing_more(tiny_model: Path, tmp_path: Path) -> None:
    config = a_training_config(tiny_model, tmp_path)
    fence = tmp_path / ".jobs/uid-1/attempt"

    def newer_attempt_starts() -> None:
        fence.write_text(fence.read_text() + "2\n")

    outcome = run_finetuning(config, AtStep(3, newer_attempt_starts), StopSignal())
    assert (outcome.reason, outcome.checkpoint_step) == (Reason.FENCED, 2)
    assert [p.name for p in tmp_path.glob(".jobs/uid-1/checkpoints/*")] == ["step-2"]
    assert list(tmp_path.glob("support-tone/*")) == []


# --- Interruption


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tiny_model: Path, tmp_path: Path) -> None:
    configs = [
        a_training_config(
            tiny_model,
            tmp_path / str(index),
            lora={"dropout": 0.1},
            hyperparameters={"batchSize": 4, "learningRate": 0.01, "epochs": 2, "seed": seed},
        )
        for index, seed in enumerate([7, 7, 8])
    ]
    first, again, other = [(FinetuningPipeline(config).run(), weights(config)) for config in configs]
    assert first[1] == again[1]
    assert first[0].adapter.fingerprint == again[0].adapter.fingerprint
    assert first[1] != other[1]


@pytest.mark.parametrize("step", [1, 2, 5, 9], ids=lambda n: f"after step {n}")
def test_a_run_interrupted_by_sigterm_ends_with_the_very_adapter_of_an_uninterrupted_one(
    tiny_model: Path, tmp_path: Path, step: int
) -> None:
    def config(output: str, attempt: int) -> Any:
        return a_training_config(
            tiny_model,
            tmp_path / output,
            job=an_attempt(attempt),
            # Dropout, so that the state of the random numbers matters; five rows, so that epochs end within a batch.
            lora={"dropout": 0.2},
            dataset={"inline": as_jsonl(chat_rows(5))},
            hyperparameters={"batchSize": 2, "microBatchSize": 1, "learningRate": 0.01, "epochs": 3},
            checkpoint={"everySteps": 4},
        )

    straight = config("straight", 1)
    run_finetuning(straight, RecordingReporter(), StopSignal())

    stop = StopSignal()
    previous = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stop.install()
    try:
        first = run_finetuning(config("broken", 1), AtStep(step, lambda: os.kill(os.getpid(), signal.SIGTERM)), stop)
    finally:
        signal.signal(signal.SIGTERM, previous[0])
        signal.signal(signal.SIGINT, previous[1])
    last_step = 9
    if step < last_step:
        assert (first.result, first.reason, first.retryable) == (Result.INTERRUPTED, Reason.INTERRUPTED, True)
        assert (first.step, first.checkpoint_step) == (step, step)
    second = run_finetuning(config("broken", 2), AtStep(step, lambda: pytest.fail("step done twice")), StopSignal())
    assert second.result is Result.SUCCEEDED
    assert weights(config("broken", 2)) == weights(straight)
    assert second.metrics == json.loads((tmp_path / "straight/support-tone/uid-1/run.json").read_text())["metrics"]


def test_a_run_interrupted_after_its_last_step_trains_no_further(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step is within an epoch, where transformers would go on from its checkpoint with one step more."""

    def config(output: str, attempt: int) -> Any:
        return a_training_config(
            tiny_model,
            tmp_path / output,
            job=an_attempt(attempt),
            dataset={"inline": as_jsonl(chat_rows(16))},
            hyperparameters={"batchSize": 4, "learningRate": 0.01, "maxSteps": 6, "schedule": "constant"},
        )

    straight = FinetuningPipeline(config("straight", 1)).run()

    stop = StopSignal()
    with monkeypatch.context() as patched:
        patched.setattr(FinetuningPipeline, "take_fingerprint", lambda *_: (stop.request(), stop.check("stopped")))
        first = run_finetuning(config("broken", 1), RecordingReporter(), stop)
    assert (first.reason, first.checkpoint_step) == (Reason.INTERRUPTED, 6)
    second = run_finetuning(config("broken", 2), AtStep(7, lambda: pytest.fail("a step too many")), StopSignal())
    assert (second.step, second.metrics) == (6, straight.metrics)
    assert weights(config("broken", 2)) == weights(config("straight", 1))
    assert second.adapter is not None
    assert straight.adapter is not None
    assert second.adapter.fingerprint == straight.adapter.fingerprint


def test_a_torn_checkpoint_is_passed_over_and_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    straight = a_training_config(tiny_model, tmp_path / "straight")
    FinetuningPipeline(straight).run()

    stop = StopSignal()
    broken = a_training_config(tiny_model, tmp_path / "broken")
    run_finetuning(broken, AtStep(5, stop.request), stop)
    newest = tmp_path / "broken/.jobs/uid-1/checkpoints/step-5"
    os.truncate(newest / "optimizer.pt", 100)

    reporter = RecordingReporter()
    again = a_training_config(tiny_model, tmp_path / "broken", job=an_attempt(2))
    run_finetuning(again, reporter, StopSignal())
    assert reporter.steps == [5, 6]  # from step 4, the checkpoint before the torn one
    assert weights(again) == weights(straight)


def test_a_request_to_stop_before_training_ends_the_run_at_once(tiny_model: Path, tmp_path: Path) -> None:
    stop = StopSignal()
    stop.request()
    outcome = run_finetuning(a_training_config(tiny_model, tmp_path), RecordingReporter(), stop)
    assert (outcome.result, outcome.retryable, outcome.step) == (Result.INTERRUPTED, True, 0)


def test_a_volume_that_keeps_its_checkpoints_does_not_fail_a_committed_adapter(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_store: RunStore) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(RunStore, "remove_checkpoints", refuse)
    outcome = FinetuningPipeline(a_training_config(tiny_model, tmp_path)).run()
    assert outcome.result is Result.SUCCEEDED
    assert outcome.adapter


def test_held_out_rows_whose_loss_is_no_number_fail_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_trainer.evaluation.evaluation import HeldOutRows

    monkeypatch.setattr(HeldOutRows, "measure", lambda *_: {"eval_loss": float("nan")})
    config = a_training_config(tiny_model, tmp_path, evaluation={"inline": as_jsonl(chat_rows(2))})
    with pytest.raises(TrainingError, match="eval_loss") as caught:
        FinetuningPipeline(config).run()
    assert caught.value.reason is Reason.LOSS_DIVERGED
