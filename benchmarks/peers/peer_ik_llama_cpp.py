"""Peer: ik_llama.cpp, a fork of llama.cpp with faster kernels for CPUs, from the wheel of ik-llama-cpp-python.

The wheel declares the C API itself; what it does not use is declared here. All sequences share one KV cache, and each
token is compared with all of it, so that fewer `num_slots` can be faster. Its flash attention stops with a failed
assertion where several sequences share the cache, on CPUs without AVX-VNNI at least: by default only a sequence that is
`alone` gets it. Options: see `peer_llama_cpp`.
"""

import ctypes
from typing import Any

import numpy as np
from batching import run_jobs
from protocol import Job, Outputs, Peer, serve

NUM_BATCH = 2048
PAD = 256  # the fork counts its KV cache in these
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
CHOICES: dict[str, list[Any]] = {
    "repack": [True, False],
    "num_slots": [8, 4, 16, 64],
    "flash_attn": ["alone", "always", "never"],
    "n_ubatch": [512, 128],
    "kv_type": ["f16", "q8_0"],
}


def _pointer(array: np.ndarray, kind: type) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


class IkContext:
    """A `llama_context` of the fork; see `batching.Context`."""

    def __init__(self, api: Any, model: Any, num_slots: int, num_tokens: int, settings: dict[str, Any]) -> None:
        self._api = api
        params = api.llama_context_default_params()
        params.n_seq_max = self.num_slots = num_slots
        params.n_ctx = num_tokens
        params.n_batch = self.num_batch = NUM_BATCH
        params.n_ubatch = settings["n_ubatch"]
        params.n_threads = params.n_threads_batch = settings["threads"]
        params.flash_attn = settings["flash_attn"] == "always" or (settings["flash_attn"] == "alone" and num_slots == 1)
        params.type_k = params.type_v = KV_TYPES[settings["kv_type"]]
        self._context = api.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError(f"ik_llama.cpp made no context with {settings}")
        self._vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        self._remove = api._lib.llama_kv_cache_seq_rm
        self._remove.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
        size = self.num_batch
        self._tokens, self._positions, self._slots, self._ones = (np.ones(size, dtype=np.int32) for _ in range(4))
        self._wanted = np.zeros(size, dtype=np.int8)
        base = self._slots.ctypes.data
        self._slot_of = np.arange(base, base + 4 * size, 4, dtype=np.uint64)
        self._batch = api.llama_batch(
            token=_pointer(self._tokens, ctypes.c_int32),
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._ones, ctypes.c_int32),
            seq_id=self._slot_of.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=_pointer(self._wanted, ctypes.c_int8),
        )

    def clear(self) -> None:
        """Forget all sequences."""
        self._api.llama_kv_cache_clear(self._context)

    def remove(self, slot: int) -> None:
        """Forget one sequence."""
        self._remove(self._context, slot, -1, -1)

    def decode(self, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray, wanted: np.ndarray) -> None:
        """Compute a batch; see `batching.Context`."""
        size = self._batch.n_tokens = len(tokens)
        self._tokens[:size], self._positions[:size] = tokens, positions
        self._slots[:size], self._wanted[:size] = slots, wanted
        if code := self._api.llama_decode(self._context, self._batch):
            raise RuntimeError(f"llama_decode returned {code} for a batch of {size} tokens")

    def logits(self, row: int) -> np.ndarray:
        """The logits after one token of the last batch: float32 [vocab_size]."""
        return np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, row), (self._vocab_size,))

    def close(self) -> None:
        """Give its memory back."""
        self._api.llama_free(self._context)


class IkLlamaCpp(Peer):
    """See `protocol.Peer`."""

    packages = ("ik-llama-cpp-python",)

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.choose(options, CHOICES)
        from ik_llama_cpp import _ctypes_api as api

        self._api = api
        self._path = options["model"]
        self._model: Any = None
        self._context: IkContext | None = None
        self._shape = (0, 0)
        api.llama_backend_init()
        self._load()
        system_info = api._lib.llama_print_system_info
        system_info.restype = ctypes.c_char_p
        self.notes = {"system_info": system_info().decode().strip(" |")}

    def configure(self, settings: dict[str, Any]) -> None:
        """Change some of the settings."""
        reload = settings.get("repack", self.settings["repack"]) != self.settings["repack"]
        self.settings |= settings
        self._drop_context()
        if reload:
            self._load()

    def prepare(self, jobs: list[Job]) -> None:
        """A context with as many sequences as the jobs need, and a cache for the longest of them side by side.

        Twice that and a batch more where sequences follow one another: a batch needs cells that lie together, and those
        that become free are scattered.
        """
        num_slots = min(self.settings["num_slots"], len(jobs))
        lengths = sorted(len(job.prompt_token_ids) + job.max_tokens for job in jobs)
        num_tokens = sum(lengths[-num_slots:])
        if num_slots < len(jobs):
            num_tokens = 2 * num_tokens + NUM_BATCH
        shape = num_slots, -(-num_tokens // PAD) * PAD
        if self._context is None or shape != self._shape:
            self._drop_context()
            self._context = IkContext(self._api, self._model, *shape, self.settings)
            self._shape = shape

    def run(self, jobs: list[Job]) -> Outputs:
        """Continue all the jobs."""
        assert self._context is not None
        return run_jobs(self._context, jobs)

    def _load(self) -> None:
        self._drop_context()
        if self._model is not None:
            self._api.llama_free_model(self._model)
        params = self._api.llama_model_default_params()
        params.repack_tensors = self.settings["repack"]
        params.use_mmap = not self.settings["repack"]  # what is packed anew cannot stay in the file
        self._model = self._api.llama_model_load_from_file(str(self._path).encode(), params)
        if not self._model:
            raise RuntimeError(f"ik_llama.cpp cannot load {self._path}")

    def _drop_context(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None


if __name__ == "__main__":
    serve(IkLlamaCpp)
