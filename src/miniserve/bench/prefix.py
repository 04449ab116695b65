"""`bench prefix`: conversations under one system prompt, with and without the prefix cache.

The engine's hit rate is held against an exact count made offline from the prompts alone: of each prompt, the leading
full blocks that an earlier prompt or reply of the run contained. With room for everything the two must be equal.
"""

import statistics
from typing import Any

from miniserve.bench.workloads import chats
from miniserve.core.hashing import block_hash, root_hash
from miniserve.core.sampling_params import SamplingParams
from miniserve.llm import LLM
from miniserve.model.load import LoadedModel
from miniserve.outputs import RequestOutput


def bench_prefix(model: LoadedModel, num_chats: int = 8, *, turns: int = 8, system: int = 512) -> dict[str, Any]:
    """Run the same conversations on an engine with the cache and on one without. Turn by turn, all chats at once."""
    found: dict[str, Any] = {}
    for caching in (True, False):
        with LLM(model, max_num_seqs=num_chats, enable_prefix_caching=caching) as llm:
            outputs = run_chats(llm, num_chats, turns, system)
            name = "cached" if caching else "uncached"
            later = [output.timings.ttft_s for turn in outputs[1:] for output in turn if output.timings.ttft_s]
            found[name] = {
                "ttft_s_median_after_first_turn": statistics.median(later),
                "hit_rate": llm.engine.metrics.hit_rate,
            }
            if caching:
                found["exact_hit_rate"] = exact_hit_rate(outputs, llm.settings.block_size)
    speedup = found["uncached"]["ttft_s_median_after_first_turn"] / found["cached"]["ttft_s_median_after_first_turn"]
    return found | {"ttft_speedup": speedup}


def run_chats(llm: LLM, num_chats: int, turns: int, system: int) -> list[list[RequestOutput]]:
    """All chats' turns: [turn][chat]."""
    said = chats(num_chats, llm.model.config.vocab_size, turns=turns, system=system)
    history: list[list[int]] = [[] for _ in range(num_chats)]
    outputs = []
    for turn in range(turns):
        for chat in range(num_chats):
            history[chat] += said[chat][turn].prompt_token_ids
        params = SamplingParams(max_tokens=said[0][turn].max_tokens, ignore_eos=True)
        outputs.append(llm.generate(history, params))
        for chat, output in enumerate(outputs[-1]):
            history[chat] = [*history[chat], *output.token_ids]
    return outputs


def exact_hit_rate(outputs: list[list[RequestOutput]], block_size: int) -> float:
    """Share of prompt tokens in leading full blocks seen before, prompts taken in order; no memory limit.

    The last token of a prompt is always computed, and the last token of a reply never is: neither fills a block.
    """
    seen: set[bytes] = set()
    hits = total = 0
    for output in (output for turn in outputs for output in turn):
        prompt = output.prompt_token_ids
        total += len(prompt)
        chain = _chain([*prompt, *output.token_ids[:-1]], block_size)
        for content in chain[: (len(prompt) - 1) // block_size]:
            if content not in seen:
                break
            hits += block_size
        seen.update(chain)
    return hits / total


def _chain(token_ids: list[int], block_size: int) -> list[bytes]:
    hashes, parent = [], root_hash()
    for at in range(0, len(token_ids) // block_size * block_size, block_size):
        parent = block_hash(parent, token_ids[at : at + block_size])
        hashes.append(parent)
    return hashes
