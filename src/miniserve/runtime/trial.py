"""A trial step: what a step takes of a GPU's memory beside the weights and the KV cache, found by computing one.

The largest there can be: as many tokens as a step may have, all of prompts, spread over as many requests as there may
be, each of which wants everything that takes memory. Their KV goes to a cache of one block, which is all theirs and is
thrown away. It is the runner's own step, so what a kernel or the sampler comes to need is counted without a formula.

Not for a CPU: there the share of the free memory that the KV cache takes by itself leaves the rest, which is the
greater part, to steps of a few hundred tokens; and pages of it that are never written take nothing.
"""

from collections.abc import Callable

import torch

from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits, SamplingParams
from miniserve.errors import InvalidRequestError
from miniserve.model.decoder import Decoder
from miniserve.runtime.kv_cache import KVCache, free_memory
from miniserve.runtime.model_runner import ModelRunner

HUNGRY = SamplingParams(temperature=1.0, top_p=0.9, repetition_penalty=1.1, logprobs=1, prompt_logprobs=1)

Probe = Callable[[Callable[[], object]], int]


def cuda_peak(device: torch.device) -> Probe:
    """Tells the most bytes that what it is given to run had allocated at once on the GPU, beyond those it found."""

    def probe(run: Callable[[], object]) -> int:
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before

    return probe


def step_bytes(decoder: Decoder, block_size: int, max_num_batched_tokens: int, max_num_seqs: int, probe: Probe) -> int:
    """Memory of the largest step, in bytes.

    Args:
        decoder: with its weights.
        block_size: tokens of a KV block.
        max_num_batched_tokens, max_num_seqs: most tokens and requests of a step; at least 1.
        probe: runs the step and tells its peak.

    Raises:
        InvalidRequestError: memory does not suffice for such a step at all.
    """
    # A step holds no more than each request's longest.
    tokens = min(max_num_batched_tokens, max_num_seqs * decoder.config.max_position_embeddings)
    step = _largest_step(tokens, min(tokens, max_num_seqs), block_size)
    cache = KVCache(decoder.config, 1, block_size, dtype=decoder.dtype, device=decoder.device)
    for each in cache.keys + cache.values:
        each.zero_()  # what is read before it was written shall be a number
    runner = ModelRunner(decoder, cache, block_size)
    try:
        return probe(lambda: runner.launch(step).result())
    except torch.OutOfMemoryError as error:
        raise InvalidRequestError(
            f"max_num_batched_tokens is {max_num_batched_tokens} and max_num_seqs {max_num_seqs}: "
            "beside the weights there is no memory for such a step. Lower them"
        ) from error


def free_beside_steps(decoder: Decoder, block_size: int, max_num_batched_tokens: int, max_num_seqs: int) -> int:
    """Bytes that can still be allocated on the decoder's device; on a GPU, beside its largest step.

    Args and errors: see `step_bytes`.
    """
    device = decoder.device
    free = free_memory(device)
    if device.type == "cuda":
        free -= step_bytes(decoder, block_size, max_num_batched_tokens, max_num_seqs, cuda_peak(device))
    return max(0, free)


def _largest_step(tokens: int, requests: int, block_size: int) -> Step:
    step = Step()
    for index in range(requests):
        length = tokens // requests + (index < tokens % requests)
        request = Request(f"trial-{index}", [0] * length, Limits(1), HUNGRY)
        request.block_table.extend([0] * -(-length // block_size))
        step.scheduled.append(Scheduled(request, 0, length))
    return step
