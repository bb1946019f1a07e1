"""One measured start in a process of its own: `start.py PEER MODEL MODULES` prints when it was there, by the wall clock.

`ours` starts the pipeline with a small dataset, is there when its first optimizer step has ended, and writes the names of
all modules that it has imported to the file MODULES. `floor` imports those, in the same order, and loads the same weights.
"""

import contextlib
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = [
    {"prompt": f"Question: what does item {i} cost?\nAnswer:", "completion": f" {3 * i} crowns"} for i in range(200)
]
BATCH_SIZE = 2


def ours(model_path: str, modules: Path) -> None:
    """The pipeline as a pod runs it, from reading its dataset on."""
    from finetune_trainer.runtime.environment import prepare_environment

    prepare_environment()
    from finetune_api.training import TrainingConfig
    from finetune_trainer.training import FinetuningPipeline
    from lab.fixtures.reporters import OnStep

    def on_first_step(_progress: Any) -> None:
        _arrive()
        modules.write_text("\n".join(sys.modules))
        os._exit(0)

    with tempfile.TemporaryDirectory() as directory:
        config = TrainingConfig.model_validate(
            {
                "model": {"path": model_path},
                "dataset": {"inline": "\n".join(map(json.dumps, ROWS))},
                "output": {"directory": directory, "adapterName": "bench"},
                "hyperparameters": {"batchSize": BATCH_SIZE, "maxSteps": 1, "precision": "float32"},
            }
        )
        FinetuningPipeline(config, reporter=OnStep(on_first_step)).run()


def floor(model_path: str, modules: Path) -> None:
    """Less than which nothing can be that trains this model by these libraries."""
    for name in modules.read_text().splitlines():
        # Some are no modules of their own, but were made by others.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(model_path)
    AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    _arrive()


def _arrive() -> None:
    print(time.time(), flush=True)


if __name__ == "__main__":
    peer, model, modules_file = sys.argv[1:]
    (ours if peer == "ours" else floor)(model, Path(modules_file))
