"""What the trainer imports late, imported: the fork server loads this module once for all warm trainers."""

import peft
import transformers.models.llama.modeling_llama
import transformers.trainer
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

__all__ = ["AutoModelForCausalLM", "AutoTokenizer", "TrainingArguments", "peft", "transformers"]
