"""A tokenizer as the files of a Hugging Face model directory: what `from_directory` reads, written.

For other programs, which know that layout and no GGUF. What is read back encodes, decodes and ends alike.
"""

import json

from miniserve.model.tokenizer.parts import TokenizerParts


def directory_files(parts: TokenizerParts) -> dict[str, str]:
    """File names and their texts: tokenizer.json, tokenizer_config.json and generation_config.json."""
    backend = parts.backend
    named = {"bos_token": parts.bos_token_id, "eos_token": parts.eos_token_id}
    config: dict[str, object] = {
        name: backend.id_to_token(token_id) for name, token_id in named.items() if token_id is not None
    }
    if parts.chat_template is not None:
        config["chat_template"] = parts.chat_template
    own = [] if parts.eos_token_id is None else [parts.eos_token_id]
    ends = {"bos_token_id": parts.bos_token_id, "eos_token_id": list(dict.fromkeys([*own, *parts.stop_ids]))}
    return {
        "tokenizer.json": backend.to_str(),
        "tokenizer_config.json": json.dumps(config),
        "generation_config.json": json.dumps({name: value for name, value in ends.items() if value not in (None, [])}),
    }
