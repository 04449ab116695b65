"""Peer: OpenVINO GenAI's continuous batching with paged attention, which reads a GGUF itself.

Options: model (a .gguf file), threads. Settings: see `CHOICES`.
"""

import time
from typing import Any

import numpy as np
from protocol import Job, Outputs, Peer, serve

CHOICES: dict[str, list[Any]] = {
    "kv_cache_precision": ["u8", "f32"],
    "max_num_batched_tokens": [2048, 256],
    "dynamic_split_fuse": [True, False],
    "dynamic_quantization_group_size": [None, 0],
}


class OpenVINO(Peer):
    """See `protocol.Peer`."""

    packages = ("openvino-genai", "openvino")

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.choose(options, CHOICES)
        self._path = options["model"]
        self._pipeline: Any = None
        self._load()
        self.notes = {"prefix_caching": False}

    def configure(self, settings: dict[str, Any]) -> None:
        """Change some of the settings: a new pipeline."""
        self.settings |= settings
        self._load()

    def run(self, jobs: list[Job]) -> Outputs:
        """Continue all the jobs: the loop inside `generate`, which would not say when the first token came."""
        import openvino as ov
        import openvino_genai as genai

        started, ttft_s = time.perf_counter(), None
        handles = []
        for number, job in enumerate(jobs):
            config = genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample = job.max_tokens, True, False
            ids = ov.Tensor(np.asarray([job.prompt_token_ids], dtype=np.int64))
            handles.append(self._pipeline.add_request(number, ids, config))
        outputs: list[list[int]] = [[] for _ in jobs]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for handle, output in zip(handles, outputs, strict=True):
                while handle.can_read():
                    for piece in handle.read().values():
                        output.extend(piece.generated_ids)
                        ttft_s = ttft_s or time.perf_counter() - started
        return Outputs(outputs, ttft_s)

    def _load(self) -> None:
        import openvino_genai as genai

        self._pipeline = None
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 2  # GB; it is taken as it is needed
        scheduler.max_num_seqs = 64
        scheduler.max_num_batched_tokens = self.settings["max_num_batched_tokens"]
        scheduler.dynamic_split_fuse = self.settings["dynamic_split_fuse"]
        scheduler.enable_prefix_caching = False
        properties = {
            "INFERENCE_NUM_THREADS": self.settings["threads"],
            "KV_CACHE_PRECISION": self.settings["kv_cache_precision"],
        }
        if self.settings["dynamic_quantization_group_size"] is not None:
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = self.settings["dynamic_quantization_group_size"]
        self._pipeline = genai.ContinuousBatchingPipeline(self._path, scheduler, "CPU", properties)


if __name__ == "__main__":
    serve(OpenVINO)
