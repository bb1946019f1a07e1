"""A causal language model of two layers and a tokenizer trained on ten lines, made on the spot and saved like a real one.

Trainer and server tests run real transformers and peft code against it: no hub, no download, a second on one core. The
weights are random, so it says nothing sensible; it can still be tuned, and tuning lowers its loss.
"""

import json
from pathlib import Path
from typing import Any

LINES = [
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset my password?",
    "You can reset your password on the account page.",
    "Where is my order?",
    "Your order left the warehouse this morning.",
    "Paris is the capital of France.",
    "Thank you for your help, have a nice day!",
    "I cannot log in, what should I do?",
    "Please clear the cookies of your browser and try again.",
    "The answer is 42, said the computer after 7 million years.",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_tiny_model(directory: Path, *, seed: int = 0, with_chat_template: bool = True) -> Path:
    """Write config, safetensors and tokenizer into `directory` and return it; the same seed gives the same bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tiny_tokenizer(with_chat_template=with_chat_template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        # The least that vLLM has kernels for.
        head_dim=32,
        max_position_embeddings=512,
        # Wider than usual: with the default of 0.02 a net this small starts as good as constant.
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_tiny_tokenizer(*, with_chat_template: bool = True) -> Any:
    """A byte-level BPE tokenizer (any text round-trips) with ChatML turns."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=512,
    )
    if with_chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def chat_rows(count: int = 8) -> list[dict[str, Any]]:
    """Rows in the `messages` format, made of the tokenizer's own ten lines."""
    return [
        {
            "messages": [
                {"role": "user", "content": LINES[i % len(LINES)]},
                {"role": "assistant", "content": LINES[(i * 3 + 1) % len(LINES)]},
            ]
        }
        for i in range(count)
    ]


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    """JSON Lines of rows."""
    return "".join(json.dumps(row) + "\n" for row in rows)
