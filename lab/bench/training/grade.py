"""What an adapter answers, with nothing but transformers and peft: `grade.py MODEL ADAPTER ROWS.jsonl` prints one JSON line.

Greedy answers to the rows' prompts, compared with their completions as text, and the mean loss per token of the completions.
"""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS_PER_PASS = 50
LONGEST_ANSWER = 24
"""Tokens; the longest label has fewer."""


def main() -> None:
    model_path, adapter, rows_path = sys.argv[1:]
    with open(rows_path, encoding="utf-8") as file:  # noqa: PTH123
        rows = [json.loads(line) for line in file]
    tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).merge_and_unload().eval()
    right, loss, tokens = 0, 0.0, 0
    with torch.inference_mode():
        # Rows of like length together: less padding.
        ordered = sorted(rows, key=lambda row: len(row["prompt"]))
        for start in range(0, len(ordered), ROWS_PER_PASS):
            part = ordered[start : start + ROWS_PER_PASS]
            said = answers(model, tokenizer, [row["prompt"] for row in part])
            right += sum(text == row["completion"] for text, row in zip(said, part, strict=True))
            part_loss, part_tokens = completion_loss(model, tokenizer, part)
            loss, tokens = loss + part_loss, tokens + part_tokens
    print(json.dumps({"exact": right / len(rows), "loss": loss / tokens}))


def answers(model, tokenizer, prompts):
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    output = model.generate(**encoded, do_sample=False, max_new_tokens=LONGEST_ANSWER)
    return tokenizer.batch_decode(output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)


def completion_loss(model, tokenizer, rows):
    """Sum over the completions' tokens, the end token among them, and their number."""
    heads = tokenizer([row["prompt"] for row in rows])["input_ids"]
    whole = tokenizer([row["prompt"] + row["completion"] + tokenizer.eos_token for row in rows], padding=True)
    ids, mask = torch.tensor(whole["input_ids"]), torch.tensor(whole["attention_mask"])
    labels = ids.masked_fill(mask == 0, -100)
    for label, padding, head in zip(labels, (mask == 0).sum(dim=1), heads, strict=True):
        label[: padding + len(head)] = -100
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return float(loss), int((labels[:, 1:] != -100).sum())


if __name__ == "__main__":
    main()
