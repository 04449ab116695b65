"""`bench accuracy`: what weights and KV of fewer bits cost, on real text.

The same tokens are given to the model in several forms. Each says how likely it finds each next token, and which one it
finds likeliest; the first form is what the others are compared with. Perplexity is e to the mean of -log p.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from miniserve.core.sampling_params import SamplingParams
from miniserve.llm import LLM
from miniserve.model.load import LoadedModel
from miniserve.runtime.kv_cache import block_bytes, choose_kv_dtype

_TORCH = {"dtype": "float32", "backend": "torch"}
_BOTH = {
    "float32, plain torch": _TORCH,
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
}
FORMS: dict[str, dict[str, dict[str, str]]] = {  # by the device's type
    "cpu": _BOTH
    | {"as in the file": {}, "int8": {"quantization": "int8"}, "int4": {"quantization": "int4"}}
    | {f"{kv} KV, float32": _TORCH | {"kv_cache_dtype": kv} for kv in ("fp8", "int8")},
    "cuda": _BOTH
    | {"float16": {"dtype": "float16"}, "fp8": {"quantization": "fp8"}, "int8": {"quantization": "int8"}}
    | {f"{kv} KV, bfloat16": {"dtype": "bfloat16", "kv_cache_dtype": kv} for kv in ("fp8", "int8")},
}


def bench_accuracy(
    load: Callable[..., LoadedModel],
    text: str,
    *,
    num_tokens: int = 4096,
    window: int = 512,
    forms: Mapping[str, Mapping[str, str]],
    progress: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """Compare the forms.

    Args:
        load: gives the model in a form, called with its arguments of `load_model`.
        text: the first `num_tokens` of it are used.
        num_tokens: most tokens.
        window: tokens a prediction may look back at: the text is cut into pieces of that length.
        forms: name -> arguments of `load`, and of `LLM` where it is `kv_cache_dtype`. The first is the truth.
        progress: told the name of each form as it begins.

    Returns:
        For each form: perplexity; mean_abs_logprob_difference to the first form, in nats; top_1_agreement, the share of
        places where both find the same token likeliest; weight_bytes that a decoded token reads; and
        kv_bytes_per_token, scales included.
    """
    found: dict[str, Any] = {}
    truth: list[tuple[float, int]] = []
    for name, arguments in forms.items():
        if progress:
            progress(name)
        kv_cache_dtype = arguments.get("kv_cache_dtype", "auto")
        model = load(**{name: value for name, value in arguments.items() if name != "kv_cache_dtype"})
        ids = model.tokenizer.encode(text)[:num_tokens]
        pieces = [ids[at : at + window] for at in range(0, len(ids), window)]
        predictions = _predictions(model, pieces, kv_cache_dtype)
        truth = truth or predictions
        pairs = list(zip(predictions, truth, strict=True))
        found[name] = {
            "perplexity": math.exp(-sum(logprob for logprob, _ in predictions) / len(predictions)),
            "mean_abs_logprob_difference": sum(abs(mine[0] - its[0]) for mine, its in pairs) / len(pairs),
            "top_1_agreement": sum(mine[1] == its[1] for mine, its in pairs) / len(pairs),
            "weight_bytes": model.decoder.weight_bytes,
            "kv_bytes_per_token": block_bytes(model.config, 1, choose_kv_dtype(kv_cache_dtype, model.choices)),
        }
    return {"num_tokens": len(truth), "window": window, "forms": found}


def _predictions(model: LoadedModel, pieces: Sequence[Sequence[int]], kv_cache_dtype: str) -> list[tuple[float, int]]:
    """For each token but a piece's first: its log-probability, and which token was the likeliest in its place."""
    params = SamplingParams(max_tokens=1, prompt_logprobs=1)
    longest = max(map(len, pieces)) + 1
    how: dict[str, Any] = {"max_num_seqs": 1, "max_model_len": longest, "kv_cache_dtype": kv_cache_dtype}
    with LLM(model, **how, enable_prefix_caching=False) as llm:
        outputs = llm.generate([piece for piece in pieces if len(piece) > 1], params)
    entries = (entry for output in outputs for entry in output.prompt_logprobs or () if entry)
    return [(entry.logprob, entry.top[0][0]) for entry in entries]
