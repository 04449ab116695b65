"""Peer: transformers' `generate`, in ours' environment, where it is installed as a reference for the tests.

Options: model (a directory), threads, dtype, method: "static" is `generate` on batches with left padding, one after the
other, each as long as its longest request; "continuous" is `generate_batch`, its continuous batching.
"""

from typing import Any

import torch
from cpu import has_bf16
from protocol import Job, Outputs, Peer, serve
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

CHOICES: dict[str, list[Any]] = {"batch_size": [64, 16, 8]}
# The sizes that it would take from a GPU's memory. A page of 16 tokens, as ours has.
CONTINUOUS: dict[str, Any] = dict(max_batch_tokens=2048, max_requests_per_batch=64, num_blocks=2048, page_size=16)


class Transformers(Peer):
    """See `protocol.Peer`."""

    packages = ("transformers", "torch")

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        torch.set_num_threads(options["threads"])
        dtype = options.get("dtype", "float32")
        if dtype == "bfloat16" and not has_bf16():
            raise ValueError("this CPU has no bfloat16 instructions: it would be emulated")
        self._continuous = options.get("method", "static") == "continuous"
        self._model: Any = AutoModelForCausalLM.from_pretrained(options["model"], dtype=getattr(torch, dtype))
        attention = self._model.config._attn_implementation
        self.choose(options, {} if self._continuous else CHOICES)
        self.settings |= {"dtype": dtype, "attention": attention}
        if self._continuous:
            self._manager = self._model.init_continuous_batching(
                generation_config=self._config(1),
                continuous_batching_config=ContinuousBatchingConfig(allow_block_sharing=False, **CONTINUOUS),
            )
            self._manager.start()
        self.notes = {"method": "generate_batch" if self._continuous else "generate, left padding"}

    @torch.inference_mode()
    def run(self, jobs: list[Job]) -> Outputs:
        """Continue all the jobs."""
        if self._continuous:
            return Outputs(self._generate_batch(jobs))
        outputs: list[list[int]] = []
        size = self.settings["batch_size"]
        for first in range(0, len(jobs), size):
            outputs += self._generate(jobs[first : first + size])
        return Outputs(outputs)

    def _generate(self, jobs: list[Job]) -> list[list[int]]:
        longest = max(len(job.prompt_token_ids) for job in jobs)
        ids = torch.zeros(len(jobs), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, job in enumerate(jobs):
            ids[row, longest - len(job.prompt_token_ids) :] = torch.tensor(job.prompt_token_ids)
            mask[row, longest - len(job.prompt_token_ids) :] = 1
        config = self._config(max(job.max_tokens for job in jobs))
        made = self._model.generate(ids, attention_mask=mask, generation_config=config)[:, longest:].tolist()
        return [row[: job.max_tokens] for row, job in zip(made, jobs, strict=True)]

    def _generate_batch(self, jobs: list[Job]) -> list[list[int]]:
        # What `generate_batch` does, but with a length for each request, and with a manager that stays.
        names = [
            self._manager.add_request(job.prompt_token_ids, max_new_tokens=job.max_tokens, eos_token_id=-1)
            for job in jobs
        ]
        made: dict[str | None, list[int]] = {}
        while len(made) < len(jobs):
            result = self._manager.get_result(timeout=1)
            if result is None:
                if not self._manager.is_running():
                    why = self._manager.background_thread_status.fatal_error
                    raise RuntimeError(f"generate_batch ended early: {why}")
            elif result.error is not None:
                raise RuntimeError(f"generate_batch: {result.error}")
            elif result.is_finished():
                made[result.request_id] = result.generated_tokens
        return [made[name] for name in names]

    def _config(self, max_new_tokens: int) -> GenerationConfig:
        # No end-of-sequence token: every request runs to its length.
        return GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0)


if __name__ == "__main__":
    serve(Transformers)
