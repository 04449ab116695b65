"""Write the model of a GGUF in the formats that peers read, so that the weights are the same.

Usage:
    python benchmarks/peers/export.py MODEL.gguf Q8_0 OUT.gguf     another number format, by way of float32
    python benchmarks/peers/export.py MODEL.gguf safetensors OUT   a directory in Hugging Face layout, float32
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np


def export_gguf(source: Path, kind: str, target: Path) -> None:
    """Write `source` again with its matrices in the number format `kind`; norms stay float32, metadata is copied.

    The rows of Q and K stay permuted as they are in the source: both files are GGUF. An embedding is not made coarser
    than 8 bits, as llama.cpp's own quantiser keeps it.
    """
    reader = gguf.GGUFReader(source)
    wanted = gguf.GGMLQuantizationType[kind]
    half = target.with_suffix(".half")
    writer = gguf.GGUFWriter(half, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        if name == "general.file_type":
            writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}" if kind != "F32" else "ALL_F32"])
            continue
        inner = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        matrix = values.ndim > 1
        kept = gguf.GGMLQuantizationType.Q8_0 if kind == "Q4_0" and "embd" in tensor.name else wanted
        packed = gguf.quantize(values, kept) if matrix else values
        writer.add_tensor(tensor.name, packed, raw_dtype=kept if matrix else gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    half.replace(target)


def export_safetensors(source: Path, target: Path) -> None:
    """Write a directory in Hugging Face layout with float32 weights, as transformers reads them from the GGUF."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(target)
    config = model.config.to_dict()
    config.pop("quantization_config", None)  # transformers remembers the file it came from; these weights are plain
    config["architectures"] = [type(model).__name__]
    (target / "config.json").write_text(json.dumps(config, indent=1, default=str), encoding="utf-8")
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Export what the command line says."""
    source, kind, target = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind == "safetensors":
        export_safetensors(source, target)
    else:
        export_gguf(source, kind, target)


if __name__ == "__main__":
    main()
