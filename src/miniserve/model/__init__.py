"""From a model's name to logits: sources, configuration, weights, tokenizer, decoder."""
