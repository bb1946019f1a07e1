"""The peer of `against_trl.py`: TRL's SFTTrainer as its documentation shows it, with the hyperparameters of the settings.

    sft_trainer.py SETTINGS.json

It runs in an environment of its own, which knows nothing of this project, and prints one JSON line.
"""

import json
import sys

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

IGNORED = -100
"""The label of a token without loss."""


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123
        settings = json.load(file)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
        train_dataset=load_dataset("json", data_files=settings["rows"], split="train"),
        peft_config=LoraConfig(
            r=settings["rank"], lora_alpha=settings["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        args=SFTConfig(
            output_dir=settings["output"],
            num_train_epochs=1,
            per_device_train_batch_size=settings["batchSize"],
            # The rows come in the order in which the other side trains on them: the same rows in the same steps.
            train_sampling_strategy="sequential",
            learning_rate=settings["learningRate"],
            lr_scheduler_type="linear",
            warmup_steps=settings["warmupRatio"],
            max_length=settings["maxLength"],
            seed=settings["seed"],
            bf16=False,
            use_cpu=True,
            # It would save memory and cost a third of the speed.
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    trainer.save_model(settings["output"])
    # After training, the dataset is as the trainer made it.
    rows = trainer.train_dataset
    done = {
        "steps": trainer.state.global_step,
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "loss_tokens": sum(label != IGNORED for row in rows for label in row["labels"]),
    }
    print(json.dumps(done))


if __name__ == "__main__":
    main()
