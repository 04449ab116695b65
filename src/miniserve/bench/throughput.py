"""`bench throughput`: a fixed workload, all requests at once, and one request alone.

Reports tokens a second, where a step's time goes, and the shares of this machine's limits that were reached: MBU, the
bytes that had to be moved over the time, against the read bandwidth measured just before; MFU the same for FLOPs.
"""

import time
from typing import Any

from miniserve.bench.ceilings import Ceilings, measure_ceilings
from miniserve.bench.work import precision_of, step_work
from miniserve.bench.workloads import Job, mixed
from miniserve.core.sampling_params import SamplingParams
from miniserve.core.step_record import StepRecord
from miniserve.llm import LLM


def bench_throughput(
    llm: LLM, num_requests: int = 64, *, apart: bool = False, progress: bool = False
) -> dict[str, Any]:
    """Run both workloads, prefix caching or not as the engine was built. Returns plain numbers, units in the names.

    Where several ranks share the model, shares are of rank 0's slice and of what it reaches while the others are idle.
    With `apart`, feed-forward parts are other ranks': rank 0 has no slice of a whole step, and shares are None.
    """
    decoder = llm.model.decoder
    ceilings = measure_ceilings(decoder.device, decoder.compute_dtype)
    jobs = mixed(num_requests, llm.model.config.vocab_size)
    run_jobs(llm, [Job([1, 2, 3], 4)])  # warm up
    return {
        "ceilings": ceilings._asdict(),
        "batch_1": _measured(llm, jobs[:1], ceilings, apart, progress),
        f"batch_{num_requests}": _measured(llm, jobs, ceilings, apart, progress),
    }


def run_jobs(llm: LLM, jobs: list[Job], *, progress: bool = False) -> int:
    """Generate exactly what the jobs say, greedily; returns the number of output tokens."""
    params = [SamplingParams(max_tokens=job.max_tokens, ignore_eos=True) for job in jobs]
    outputs = llm.generate([job.prompt_token_ids for job in jobs], params, progress=progress)
    return sum(len(output.token_ids) for output in outputs)


def _measured(llm: LLM, jobs: list[Job], ceilings: Ceilings, apart: bool, progress: bool) -> dict[str, Any]:
    records: list[StepRecord] = []
    llm.engine.on_step, before = records.append, llm.engine.on_step
    try:
        started = time.perf_counter()
        output_tokens = run_jobs(llm, jobs, progress=progress)
        wall_s = time.perf_counter() - started
    finally:
        llm.engine.on_step = before
    decoder = llm.model.decoder
    precision = precision_of(decoder)
    work = [step_work(decoder.config, record.parts, precision) for record in records]
    split = {"schedule": sum(record.schedule_s for record in records)}
    for record in records:
        for name, seconds in record.seconds.items():
            split[name] = split.get(name, 0.0) + seconds
    return {
        "num_requests": len(jobs),
        "prompt_tokens": sum(len(job.prompt_token_ids) for job in jobs),
        "output_tokens": output_tokens,
        "wall_s": wall_s,
        "output_tokens_per_s": output_tokens / wall_s,
        "num_steps": len(records),
        "step_s": split | {"other": wall_s - sum(split.values())},
        "mbu": None if apart else sum(each.bytes for each in work) / wall_s / ceilings.read_bytes_per_s,
        "mfu": None if apart else sum(each.flops for each in work) / wall_s / ceilings.flops_per_s,
    }
