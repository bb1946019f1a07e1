"""Parts that both engines use: LoRA weights and their checks, sampling rules, defaults."""
