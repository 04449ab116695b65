"""Peer: llama.cpp, from the prebuilt library inside the wheel of xllamacpp, through its C API.

The declarations of the C API come from the wheel of llama-cpp-py-sync of the same week, which generates them from the
headers; its own library is not used, as it needs a newer C library than most systems have. `load` refuses a library
whose defaults do not look like what the declarations say.

Options: weights (a name in the exported files; the file itself comes as `model`), threads. Settings: see `CHOICES`.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from batching import run_jobs
from cpu import instruction_sets
from protocol import Job, Outputs, Peer, serve

NUM_SLOTS = 64
WARNING, ERROR = 3, 4  # of ggml's log levels
PAD = 256  # llama.cpp counts the context of a sequence in these
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
# Names of the system, and the library's own for the same. This wheel is built for AVX2 and knows none of them: on a CPU
# that has them, a build from source would be faster.
COULD_BE_USED = {
    "avx512f": "avx512",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx_vnni": "avx_vnni",
    "amx_int8": "amx_int8",
}
CHOICES: dict[str, list[Any]] = {
    "flash_attn": [True, False],
    "kv_unified": [False, True],
    "n_ubatch": [512, 128, 2048],
    "n_batch": [2048],
    "kv_type": ["f16", "q8_0"],
    "repack": [True],
}


class LlamaContext:
    """A `llama_context` for some number of sequences; see `batching.Context`."""

    def __init__(self, ffi: Any, lib: Any, model: Any, num_slots: int, length: int, settings: dict[str, Any]) -> None:
        self._ffi, self._lib = ffi, lib
        params = lib.llama_context_default_params()
        params.n_seq_max = self.num_slots = num_slots
        params.n_ctx = num_slots * length
        params.n_batch = self.num_batch = settings["n_batch"]
        params.n_ubatch = min(settings["n_ubatch"], settings["n_batch"])
        params.n_threads = params.n_threads_batch = settings["threads"]
        params.flash_attn_type = int(settings["flash_attn"])
        params.type_k = params.type_v = KV_TYPES[settings["kv_type"]]
        params.kv_unified = settings["kv_unified"]
        self._context = lib.llama_init_from_model(model, params)
        if self._context == ffi.NULL:
            raise RuntimeError(f"llama.cpp made no context with {settings}")
        self._memory = lib.llama_get_memory(self._context)
        self._vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        size = self.num_batch
        self._tokens, self._positions, self._slots, ones = (np.ones(size, dtype=np.int32) for _ in range(4))
        self._wanted = np.zeros(size, dtype=np.int8)
        slots = ffi.cast("int32_t *", ffi.from_buffer(self._slots))
        self._slot_of = ffi.new("int32_t *[]", [slots + i for i in range(size)])
        self._batch = batch = ffi.new("struct llama_batch *")
        batch.token = ffi.cast("int32_t *", ffi.from_buffer(self._tokens))
        batch.pos = ffi.cast("int32_t *", ffi.from_buffer(self._positions))
        batch.n_seq_id = ffi.cast("int32_t *", ffi.from_buffer(ones))
        batch.seq_id = self._slot_of
        batch.logits = ffi.cast("int8_t *", ffi.from_buffer(self._wanted))
        self._keep = ones

    def clear(self) -> None:
        """Forget all sequences."""
        self._lib.llama_memory_clear(self._memory, False)

    def remove(self, slot: int) -> None:
        """Forget one sequence."""
        self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def decode(self, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray, wanted: np.ndarray) -> None:
        """Compute a batch; see `batching.Context`."""
        size = self._batch.n_tokens = len(tokens)
        self._tokens[:size], self._positions[:size] = tokens, positions
        self._slots[:size], self._wanted[:size] = slots, wanted
        if code := self._lib.llama_decode(self._context, self._batch[0]):
            raise RuntimeError(f"llama_decode returned {code} for a batch of {size} tokens")

    def logits(self, row: int) -> np.ndarray:
        """The logits after one token of the last batch: float32 [vocab_size]."""
        pointer = self._lib.llama_get_logits_ith(self._context, row)
        return np.frombuffer(self._ffi.buffer(pointer, 4 * self._vocab_size), dtype=np.float32)

    def close(self) -> None:
        """Give its memory back."""
        self._lib.llama_free(self._context)


class LlamaCpp(Peer):
    """See `protocol.Peer`."""

    packages = ("xllamacpp", "llama-cpp-py-sync")

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.choose(options, CHOICES)
        from llama_cpp_py_sync import _cffi_bindings
        from xllamacpp import xllamacpp

        self._ffi = _cffi_bindings.get_ffi()
        self._lib = lib = self._ffi.dlopen(xllamacpp.__file__)
        self._path = Path(options["model"])
        self._model: Any = None
        self._context: LlamaContext | None = None
        self._shape = (0, 0)
        self._log = self._ffi.callback("ggml_log_callback", self._to_stderr)
        lib.llama_log_set(self._log, self._ffi.NULL)
        self._check_declarations()
        lib.llama_backend_init()
        self._load()
        system_info = self._ffi.string(lib.llama_print_system_info()).decode().strip(" |")
        used = {part.partition("=")[0].strip().lower() for part in system_info.replace("CPU :", "").split("|")}
        unused = [name for name in instruction_sets() if name in COULD_BE_USED and COULD_BE_USED[name] not in used]
        self.notes = {"system_info": system_info, "unused_instruction_sets": unused}

    def configure(self, settings: dict[str, Any]) -> None:
        """Change some of the settings."""
        reload = settings.get("repack", self.settings["repack"]) != self.settings["repack"]
        self.settings |= settings
        self._drop_context()
        if reload:
            self._load()

    def prepare(self, jobs: list[Job]) -> None:
        """A context for jobs of this shape: as many sequences as they need, each as long as the longest of them."""
        longest = max(len(job.prompt_token_ids) + job.max_tokens for job in jobs)
        shape = min(NUM_SLOTS, len(jobs)), -(-longest // PAD) * PAD
        if self._context is None or shape != self._shape:
            self._drop_context()
            self._context = LlamaContext(self._ffi, self._lib, self._model, *shape, self.settings)
            self._shape = shape

    def run(self, jobs: list[Job]) -> Outputs:
        """Continue all the jobs."""
        assert self._context is not None
        return run_jobs(self._context, jobs)

    def _to_stderr(self, level: int, text: Any, _data: Any) -> None:
        if WARNING <= level <= ERROR:
            sys.stderr.write(self._ffi.string(text).decode(errors="replace"))

    def _check_declarations(self) -> None:
        params = self._lib.llama_context_default_params()
        seen = params.n_batch, params.n_ubatch, params.n_seq_max, params.type_k, params.type_v, params.kv_unified
        if seen != (2048, 512, 1, 1, 1, False):
            raise RuntimeError(f"the declarations of llama.cpp's API do not fit this library: its defaults are {seen}")

    def _load(self) -> None:
        self._drop_context()
        if self._model is not None:
            self._lib.llama_model_free(self._model)
        params = self._lib.llama_model_default_params()
        params.use_extra_bufts = self.settings["repack"]
        self._model = self._lib.llama_model_load_from_file(str(self._path).encode(), params)
        if self._model == self._ffi.NULL:
            raise RuntimeError(f"llama.cpp cannot load {self._path.name}")

    def _drop_context(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None


if __name__ == "__main__":
    serve(LlamaCpp)
