"""miniserve: a small, readable LLM serving engine.

`import miniserve` stays fast: it imports no torch. The names below are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from miniserve._version import __version__

if TYPE_CHECKING:
    from miniserve.core.sampling_params import SamplingParams
    from miniserve.llm import LLM
    from miniserve.model.load import LoadedModel, load_model
    from miniserve.outputs import RequestOutput

_LAZY = {
    "LLM": "miniserve.llm",
    "LoadedModel": "miniserve.model.load",
    "RequestOutput": "miniserve.outputs",
    "SamplingParams": "miniserve.core.sampling_params",
    "load_model": "miniserve.model.load",
}

__all__ = ["LLM", "LoadedModel", "RequestOutput", "SamplingParams", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'miniserve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
