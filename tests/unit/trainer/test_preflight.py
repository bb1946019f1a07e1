"""Models and settings that cannot work, and what `validate` says of each before anything is loaded."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from finetune_api.contract import ExitCode
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import Lora
from finetune_trainer.__main__ import main
from finetune_trainer.errors import TrainingError
from finetune_trainer.model.lora import build_lora_config, plan_adapter
from finetune_trainer.preflight import run_preflight
from finetune_trainer.preflight.checks import check_disk
from lab.fixtures.tiny_model import as_jsonl, chat_rows, make_tiny_tokenizer
from lab.fixtures.training_runs import a_training_config, write_config

pytestmark = pytest.mark.model

WEIGHTS = "model.safetensors"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def configured(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **changes)


def cut_weights(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 100)


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["model.embed_tokens.weight"]
    save_file(weights, folder / WEIGHTS)


def forget_a_shard(folder: Path) -> None:
    shard = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": WEIGHTS, "b": shard}}))


def write_a_new_token(folder: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_tokens([f"<new-{n}>" for n in range(9)])
    tokenizer.chat_template = "{{ '<new-0>' if add_generation_prompt }}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)


def only_pickled_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def no_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("tokenizer*"), *folder.glob("chat_template*")]:
        path.unlink()


MODELS: list[tuple[str, Callable[[Path], None], str]] = [
    ("no config", remove("config.json"), "it has no config.json"),
    ("config cut off", write("config.json", b'{"model_'), "its config.json cannot be read"),
    ("config binary", write("config.json", b"\xff\xfe\0"), "its config.json cannot be read"),
    ("config a list", write("config.json", b"[]"), "its config.json names no model_type"),
    ("no model type", write("config.json", b"{}"), "its config.json names no model_type"),
    ("unknown type", configured(model_type="gpt-99"), "gpt-99"),
    ("remote code", configured(model_type="x", auto_map={"AutoConfig": "evil.Config"}), "cannot be tuned"),
    ("an encoder", configured(model_type="distilbert", architectures=["DistilBertModel"]), "DistilBertModel"),
    ("a classifier", configured(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
    ("odd sizes", configured(num_attention_heads=7), "cannot be tuned"),
    ("text for a size", configured(hidden_size="many"), "cannot be tuned"),
    ("endless layers", configured(num_hidden_layers=10**9), "its config.json says num_hidden_layers=1000000000"),
    ("pickled weights", only_pickled_weights, "it has no *.safetensors weights (pickled weights are never loaded)"),
    ("no weights", remove(WEIGHTS), "it has no *.safetensors weights"),
    ("weights cut off", cut_weights, "model.safetensors is not a complete safetensors file (it holds"),
    ("weights empty", write(WEIGHTS, b""), "it has 0 bytes and no whole header"),
    ("weights are LFS", write(WEIGHTS, b"version https://git-lfs.github.com"), "and no whole header"),
    ("header no JSON", write(WEIGHTS, struct.pack("<Q", 4) + b"junk"), "its header is not JSON"),
    ("header no table", write(WEIGHTS, struct.pack("<Q", 2) + b"[]"), "its header is not one of safetensors"),
    ("odd header", write(WEIGHTS, struct.pack("<Q", 9) + b'{"a": {}}'), "its header is not one of safetensors"),
    ("a weight missing", drop_a_weight, "its config.json describes a model of"),
    ("a shard missing", forget_a_shard, "model-00002-of-00002.safetensors is missing, which"),
    ("odd index", write("model.safetensors.index.json", b"[]"), "has no weight_map; copy the model again"),
    ("no tokenizer", no_tokenizer, "cannot be tuned"),
    ("tokenizer cut off", write("tokenizer.json", b"{"), "cannot be tuned"),
    ("foreign tokenizer", write_a_new_token, "writes the token <new-0> (id 384), the model has embeddings for 384"),
]


@pytest.mark.parametrize(("name", "damage", "expected"), MODELS, ids=[name for name, _, _ in MODELS])
def test_a_model_that_cannot_be_tuned_is_refused_without_loading_it(
    tiny_model: Path, tmp_path: Path, name: str, damage: Callable[[Path], None], expected: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    damage(folder)
    (failure,) = run_preflight(a_training_config(folder, tmp_path / "out")).failures
    assert failure.reason is Reason.MODEL_INVALID, failure.message
    assert "pvc://models/tiny" in failure.message
    assert expected in failure.message


TOOLS_FIRST = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
SYSTEM = json.dumps({"messages": [{"role": r, "content": "a"} for r in ("system", "user", "assistant")]})
TWO_TURNS = json.dumps({"messages": [{"role": r, "content": "a"} for r in ("user", "assistant") * 2]})


@pytest.mark.parametrize(
    ("template", "rows", "expected"),
    [
        (TOOLS_FIRST, SYSTEM, "line 1: the model's chat template refuses these messages: no system role"),
        (
            "{% if not add_generation_prompt %}{% set messages = [] %}{% endif %}",
            TWO_TURNS,
            "line 1: the model's chat template renders messages[1] differently",
        ),
        ("{{ messages[0].name.first }}", TWO_TURNS, "line 1: the model's chat template refuses these messages"),
        (
            "{{ messages[0]['content'] + 1 }}",
            TWO_TURNS,
            "line 1: the model's chat template fails on these messages (TypeError)",
        ),
        ("{% for", TWO_TURNS, "line 1: the model's chat template refuses these messages"),
    ],
)
def test_a_template_that_does_not_go_with_the_rows_is_found(
    tiny_model: Path, tmp_path: Path, template: str, rows: str, expected: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / "chat_template.jinja"
    path.write_text(template + path.read_text())
    (failure,) = run_preflight(a_training_config(folder, tmp_path / "out", dataset={"inline": rows})).failures
    assert failure.reason is Reason.DATASET_INVALID
    assert expected in failure.message


def test_a_conversation_needs_a_chat_template(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    (failure,) = run_preflight(a_training_config(folder, tmp_path / "out")).failures
    assert failure.reason is Reason.DATASET_INVALID
    assert "the model has no chat template; use rows of prompt and completion" in failure.message


SETTINGS: list[tuple[dict[str, Any], Reason, str]] = [
    ({"model": {"path": "/nowhere"}}, Reason.MODEL_NOT_FOUND, "Model /nowhere does not exist"),
    ({"model": {"path": "/" + "x" * 5000}}, Reason.MODEL_NOT_FOUND, "does not exist; check model.source"),
    (
        {"model": {"path": "not a/name"}},
        Reason.MODEL_NOT_FOUND,
        "'not a/name' is neither an existing folder nor ORG/NAME",
    ),
    ({"lora": {"targetModules": ["query"]}}, Reason.TARGET_MODULES_NOT_FOUND, "names query, which this model does not"),
    (
        {"lora": {"targetModules": ["all-linear", "q_proj"]}},
        Reason.TARGET_MODULES_NOT_FOUND,
        "(all-linear must stand alone); it has down_proj",
    ),
    ({"output": {"directory": "/dev/null", "adapterName": "a"}}, Reason.SPEC_INVALID, "/dev/null is a file, expected"),
    (
        {"evaluation": {"inline": as_jsonl(chat_rows(2))}, "evaluationSettings": {"metrics": ["bleu"]}},
        Reason.SPEC_INVALID,
        "evaluation.metrics names bleu, which is not installed; installed are answer_match, exact_match, rouge_l, token_f1",
    ),
]


@pytest.mark.parametrize(("changes", "reason", "expected"), SETTINGS)
def test_a_setting_that_cannot_work_has_its_own_reason(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], reason: Reason, expected: str
) -> None:
    (failure,) = run_preflight(a_training_config(tiny_model, tmp_path, **changes)).failures
    assert failure.reason is reason
    assert expected in failure.message


def test_one_mistake_does_not_hide_another(tiny_model: Path, tmp_path: Path) -> None:
    config = a_training_config(
        tiny_model,
        tmp_path,
        dataset={"inline": "{"},
        lora={"targetModules": ["query"]},
        output={"directory": "/dev/null", "adapterName": "a"},
    )
    reasons = [failure.reason for failure in run_preflight(config).failures]
    assert reasons == [Reason.DATASET_INVALID, Reason.TARGET_MODULES_NOT_FOUND, Reason.SPEC_INVALID]


def test_a_sound_run_is_estimated_and_what_is_probably_not_meant_is_said(tiny_model: Path, tmp_path: Path) -> None:
    found = run_preflight(a_training_config(tiny_model, tmp_path / "out"))
    assert found.failures == []
    assert found.warnings == [
        "hyperparameters.maxLength=1024 is more than the 512 tokens that the model has positions for; rows are cut to 512"
    ]
    assert found.memory is not None
    assert found.shape is not None
    # Rank 8 beside 7 linear layers of 2 blocks, each with rank * (inputs + outputs) parameters.
    assert found.shape.trainable == 2 * 8 * (2 * (32 + 128) + 2 * (32 + 64) + 3 * (32 + 64))
    assert found.memory.estimate.weights == 4 * sum(p.numel() for p in found.shape.model.parameters())
    assert found.memory.estimate.adapter == 16 * found.shape.trainable
    assert found.shape.model.device.type == "meta"
    assert not (tmp_path / "out").exists()


ADAPTERS: list[dict[str, Any]] = [
    {},
    {"rank": 3, "useDora": True},
    {"targetModules": ["q_proj", "embed_tokens"]},
    {"targetModules": ["lm_head", "embed_tokens", "mlp.up_proj"], "useDora": True},
]


@pytest.mark.parametrize("lora", ADAPTERS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_adapter_has_the_parameters_that_peft_gives_it(lora: dict[str, Any], architecture: str) -> None:
    import torch
    from peft import get_peft_model, get_peft_model_state_dict
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    if architecture == "gpt2":  # whose layers are Conv1D, with inputs and outputs the other way round
        names = {"q_proj": "c_attn", "embed_tokens": "wte", "mlp.up_proj": "mlp.c_fc"}
        lora = {**lora, "targetModules": [names.get(t, t) for t in lora.get("targetModules", ["all-linear"])]}
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, vocab_size=64, **sizes))
        wanted = Lora.model_validate(lora)
        planned = plan_adapter(wanted, model)
        config = build_lora_config(wanted, model, base_name="m", base_revision="r")
        adapted = get_peft_model(model, config)
        assert planned.parameters == adapted.get_nb_trainable_parameters()[0]
        tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        assert planned.tensors == {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_a_model_that_is_larger_than_the_gpu_will_not_fit(tiny_model: Path, tmp_path: Path) -> None:
    config = a_training_config(tiny_model, tmp_path)
    (failure,) = run_preflight(config, gpu_memory=1 << 17).failures
    assert failure.reason is Reason.WONT_FIT_GPU
    assert "the accelerator has 0.1 MiB; raise the limit, or use a smaller model" in failure.message
    memory = run_preflight(config, gpu_memory=80 << 30).memory
    assert memory is not None
    tight = run_preflight(config, gpu_memory=memory.estimate.least + 1)
    assert tight.failures == []
    assert "lower hyperparameters.microBatchSize or maxLength" in tight.warnings[-1]


def test_an_adapter_that_is_larger_than_the_volume_will_not_fit(tiny_model: Path, tmp_path: Path) -> None:
    config = a_training_config(tiny_model, tmp_path)
    check_disk(config, 1 << 20)
    with pytest.raises(
        TrainingError, match=r"enlarge output.claim, or lower method.lora.rank or checkpoint.keep"
    ) as caught:
        check_disk(config, 1 << 60)
    assert caught.value.reason is Reason.STORAGE_FULL


SPECS: list[tuple[dict[str, Any], str]] = [
    ({"lora": {"rank": 0}}, "lora.rank: expected 1 or more, found 0"),
    ({"lora": {"rank": 10**6}}, "lora.rank: expected 256 or less, found 1000000"),
    ({"lora": {"rnak": 8}}, "lora.rnak: unknown field; did you mean rank?"),
    ({"lora": {"targetModules": []}}, "lora.targetModules: expected at least 1 item"),
    ({"hyperparameters": {"epochs": 1, "maxSteps": 1}}, "hyperparameters: set at most one of epochs and maxSteps"),
    ({"hyperparameters": {"learningRate": "fast"}}, 'hyperparameters.learningRate: expected a number, found "fast"'),
    ({"hyperparameters": {"learningRate": -1}}, "hyperparameters.learningRate: expected more than 0, found -1"),
    ({"hyperparameters": {"maxLength": 4}}, "hyperparameters.maxLength: expected 8 or more, found 4"),
    ({"hyperparameters": {"batchSize": 1e99}}, "hyperparameters.batchSize: expected an integer"),
    ({"hyperparameters": {"lossOn": "none"}}, "hyperparameters.lossOn: expected completion or all"),
    ({"hyperparameters": {"precision": "int3"}}, "hyperparameters.precision: expected auto, float32 or"),
    ({"dataset": {}}, "dataset: set exactly one of inline, path and sources"),
    ({"dataset": {"inline": "a", "path": "b"}}, "dataset: set exactly one of inline, path and sources"),
    ({"dataset": {"inline": "a", "format": "alpaca"}}, "dataset.format: expected auto, messages"),
    ({"dataset": {"inline": "a", "evaluationFraction": 1}}, "dataset.evaluationFraction: expected 0.5 or less"),
    ({"model": {}}, "model.path: required, but missing"),
    ({"output": {"directory": "/out"}}, "output.adapterName: required, but missing"),
    ({"evaluationSettings": {"metrics": ["F1 score"]}}, "evaluationSettings.metrics[0]: expected text that matches"),
    ({"checkpoint": {"everySteps": 0}}, "checkpoint.everySteps: expected 1 or more"),
]


@pytest.mark.parametrize(("changes", "expected"), SPECS)
def test_a_field_that_is_wrong_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], expected: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**a_training_config(Path("/m"), tmp_path).to_dict(), **changes}))
    assert main(["validate", str(path)]) == ExitCode.CONFIG_INVALID
    printed = capsys.readouterr().err
    assert printed.startswith("SpecInvalid: ")
    assert expected in printed


def test_validate_prints_the_dataset_and_every_failure(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = '{"prompt": "a", "completion": "b"}\n' * 3
    config = a_training_config(
        tiny_model, tmp_path / "out", dataset={"inline": rows}, output={"directory": "/dev/null", "adapterName": "a"}
    )
    assert main(["validate", str(write_config(config, tmp_path / "c.json"))]) == ExitCode.CONFIG_INVALID
    printed = capsys.readouterr()
    assert "3 training rows, 0 evaluation rows, format prompt-completion, sha256:" in printed.out
    assert "warning:    2 of 3 training rows repeat an earlier row; remove them" in printed.out
    assert "SpecInvalid: output.directory /dev/null: /dev/null is a file, expected a folder" in printed.err


MEASURE = """
import sys
sys.path[:0] = sys.argv[1:2]
from support.server.memory import peak_bytes
from finetune_api.training import RowsConfig
from finetune_trainer import data
from finetune_trainer.errors import TrainingError

import pyarrow
before = peak_bytes()
for path in sys.argv[2:]:
    try:
        data.read_examples(RowsConfig(path=path), row_format="auto", columns=None, loss_on="completion")
    except TrainingError:
        pass
print(peak_bytes() - before >> 20)
"""


def test_no_file_makes_memory_run_away(tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte of gzip, a line without end, a sparse file, brackets for ever."""
    import gzip

    line, brackets, bomb = tmp_path / "line.jsonl", tmp_path / "deep.json", tmp_path / "bomb.jsonl.gz"
    with line.open("wb") as file:
        file.write(b'{"text": "')
        file.truncate(1 << 30)
    brackets.write_bytes(b"[" * (8 << 20))
    with gzip.open(bomb, "wb", compresslevel=1) as packed:
        packed.write(b" " * 100)
        for _ in range(64):
            packed.write((b" " * 1023 + b"\n") * 1024)
        packed.write(b" " * (100 << 20))
    support = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", MEASURE, support, str(line), str(brackets), str(bomb)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 10 < grown < 200, f"{grown} MiB"
