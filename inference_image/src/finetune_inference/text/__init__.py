"""Text to tokens and back: vocabulary, chat template, detokenizer, grammar."""
