"""Peer: miniserve itself, as this checkout has it. Options: model, threads, and any keyword argument of `LLM`."""

from typing import Any

import torch
from protocol import Job, Outputs, Peer, serve

from miniserve import LLM, SamplingParams


class Ours(Peer):
    """See `protocol.Peer`."""

    packages = ("miniserve", "torch")

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.settings = dict(options)
        self.settings["threads"] = threads = options.pop("threads")
        torch.set_num_threads(threads)
        # A run is repeated with the same prompts: nobody may keep what it computed of them.
        self._llm = LLM(**{"device": "cpu", "max_num_seqs": 64, **options, "enable_prefix_caching": False})
        decided = self._llm.settings
        self.notes = {
            "backend": decided.backend,
            "dtype": decided.dtype,
            "quantization": decided.quantization,
            "block_size": decided.block_size,
            "prefix_caching": False,
        }

    def run(self, jobs: list[Job]) -> Outputs:
        """Continue all the jobs."""
        params = [SamplingParams(max_tokens=job.max_tokens, ignore_eos=True) for job in jobs]
        outputs = self._llm.generate([job.prompt_token_ids for job in jobs], params)
        return Outputs([output.token_ids for output in outputs], outputs[0].timings.ttft_s)


if __name__ == "__main__":
    serve(Ours)
