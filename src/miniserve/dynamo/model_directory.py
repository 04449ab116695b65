"""What Dynamo's frontend reads of a model: a directory with its tokenizer, its chat template and its configuration.

A frontend turns text into token ids itself, from files in Hugging Face layout. A model in that layout is its own such
directory. For a GGUF file they are written from what it holds, without weights, into the cache, under a name that is
made of their content: processes that write at once write the same.
"""

import hashlib
import json
import os
from pathlib import Path

from miniserve.cache_dir import cache_dir
from miniserve.model.config import ModelConfig
from miniserve.model.load import open_checkpoint
from miniserve.model.sources.resolve import resolve
from miniserve.model.tokenizer.tokenizer import Tokenizer


def model_directory(model: str) -> Path:
    """The directory of a model, by any name that `resolve` knows. Reads no weights.

    Raises:
        MiniserveError: it is not there, or not supported.
    """
    files = resolve(model, progress=False)
    if files.kind == "directory":
        return files.path.absolute()
    checkpoint = open_checkpoint(files)
    contents = _contents(checkpoint.config, checkpoint.tokenizer())
    name = hashlib.sha256("".join(contents.values()).encode()).hexdigest()[:16]
    directory = cache_dir() / "dynamo" / f"{files.path.stem}-{name}"
    directory.mkdir(parents=True, exist_ok=True)
    for file, text in contents.items():
        partial = directory / f".{file}.{os.getpid()}"
        partial.write_text(text, encoding="utf-8")
        partial.replace(directory / file)
    return directory


def _contents(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, str]:
    described = {
        "model_type": config.architecture,
        "architectures": [f"{config.architecture.capitalize()}ForCausalLM"],  # must be there; nothing is made of it
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "eos_token_id": sorted(tokenizer.eos_token_ids),
        "bos_token_id": tokenizer.bos_token_id,
    }
    return {**tokenizer.directory_files(), "config.json": json.dumps(described)}
