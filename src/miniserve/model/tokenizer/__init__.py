"""Text to token ids and back: tokenizers from files, chat templates, and incremental detokenisation. Torch-free."""
