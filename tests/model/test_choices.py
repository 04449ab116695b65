"""What "auto" comes to, and what is refused by name."""

import pytest
import torch

from miniserve.errors import InvalidRequestError
from miniserve.kernels import reference
from miniserve.kernels.cpu import ops as cpu_ops
from miniserve.model import choices
from miniserve.model.choices import best_dtype, choose

NO_COMPILER = "the C++ kernels need a compiler, and none is on the PATH"


@pytest.fixture
def compiled(monkeypatch):
    monkeypatch.setattr(choices, "unavailable", lambda: None)


@pytest.fixture
def not_compiled(monkeypatch):
    monkeypatch.setattr(choices, "unavailable", lambda: NO_COMPILER)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16), ((12, 0), torch.bfloat16)],
)
def test_auto_dtype_goes_by_capability(monkeypatch, capability, expected):
    """A T4 claims bfloat16 support by emulation; its capability says float16."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert best_dtype(torch.device("cuda"), "torch") is expected


def test_auto_on_a_cpu_with_kernels(compiled):
    """Weights and KV as small as they can be without loss, arithmetic in float32."""
    made = choose("cpu")
    assert (made.backend, made.ops, made.note) == ("cpu", cpu_ops, "")
    assert (made.dtype, made.compute_dtype, made.quantization) == (torch.bfloat16, torch.float32, "file")


def test_auto_on_a_cpu_without_kernels_says_what_is_lost(not_compiled):
    made = choose("cpu")
    assert (made.backend, made.ops) == ("torch", reference)
    assert (made.dtype, made.compute_dtype, made.quantization) == (torch.float32, torch.float32, "none")
    assert made.note == f"plain torch computes, several times slower than the C++ kernels: {NO_COMPILER}"


def test_a_dtype_that_is_named_holds_for_all_weights(compiled):
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        made = choose("cpu", name)
        assert (made.backend, made.dtype, made.quantization) == ("cpu", dtype, "none")
    assert choose("cpu", "float32", quantization="file").quantization == "file"
    assert choose("cpu", quantization="none").quantization == "none"


def test_float16_on_a_cpu_is_left_to_torch(compiled):
    made = choose("cpu", "float16")
    assert (made.backend, made.dtype, made.compute_dtype) == ("torch", torch.float16, torch.float16)
    assert "it has no float16" in made.note


def test_torch_is_not_second_best_where_it_was_asked_for(compiled):
    assert choose("cpu", backend="torch").note == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "device 'tpu' is not one of"),
        ({"device": "cuda:77"}, "this machine has"),
        ({"dtype": "int7"}, "dtype 'int7' is not one of auto, float32"),
        ({"backend": "gpu"}, "backend 'gpu' is not one of auto, torch, cpu"),
        ({"quantization": "int3"}, "quantization 'int3' is not one of auto, none, int8, int4, file"),
        ({"backend": "cpu", "dtype": "float16"}, "backend 'cpu' does not work here: it has no float16"),
        (
            {"backend": "torch", "quantization": "int8"},
            "quantization 'int8' needs the CPU's C\\+\\+ kernels or Triton's: the backend is",
        ),
        ({"quantization": "fp8"}, "quantization 'fp8' does not work here: it needs the Triton kernels"),
    ],
)
def test_refusals(compiled, arguments, message):
    with pytest.raises(InvalidRequestError, match=message):
        choose(**({"device": "cpu"} | arguments))


@pytest.mark.parametrize("arguments", [{"backend": "cpu"}, {"quantization": "int4"}])
def test_what_needs_the_kernels_is_refused_without_them(not_compiled, arguments):
    with pytest.raises(InvalidRequestError, match="need a compiler, and none is on the PATH"):
        choose("cpu", **arguments)


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(capability, has_triton)`: a machine with such a GPU."""

    def pretend(capability, has_triton=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(choices, "find_spec", lambda name: object() if has_triton else None)

    return pretend


@pytest.mark.parametrize("dtype", ["auto", "float32", "float16"])
def test_auto_on_a_gpu_is_triton(gpu, dtype):
    gpu((9, 0))
    made = choose("cuda", dtype)
    assert (made.backend, made.note, made.quantization) == ("triton", "", "none")
    assert made.dtype is made.compute_dtype is {"auto": torch.bfloat16}.get(dtype, getattr(torch, dtype, None))
    assert choose("cuda", backend="torch").backend == "torch"


def test_rows_of_eight_bits_on_a_gpu(gpu):
    gpu((8, 0))
    assert choose("cuda", quantization="int8").quantization == "int8"
    with pytest.raises(InvalidRequestError, match="quantization 'fp8' does not work here: it needs compute capability"):
        choose("cuda", quantization="fp8")
    with pytest.raises(InvalidRequestError, match=r"quantization 'int4' needs the CPU's C\+\+ kernels: the backend is"):
        choose("cuda", quantization="int4")
    gpu((8, 9))
    assert choose("cuda", quantization="fp8").quantization == "fp8"


@pytest.mark.parametrize(
    ("capability", "has_triton", "reason"),
    [((7, 5), True, "need compute capability 8.0, and cuda has 7.5"), ((9, 0), False, "triton is not installed")],
)
def test_a_gpu_without_triton_says_what_is_lost(gpu, capability, has_triton, reason):
    gpu(capability, has_triton)
    made = choose("cuda")
    assert (made.backend, made.ops) == ("torch", reference)
    assert made.note.startswith("plain torch computes, slower than the Triton kernels: ")
    assert reason in made.note
    with pytest.raises(InvalidRequestError, match=f"backend 'triton' does not work here: .*{reason}"):
        choose("cuda", backend="triton")


def test_triton_is_refused_on_a_cpu():
    with pytest.raises(InvalidRequestError, match="it is for NVIDIA GPUs, and the device is cpu"):
        choose("cpu", backend="triton")


def test_the_triton_operators_are_loaded_when_they_are_asked_for(gpu):
    pytest.importorskip("triton", reason="the package triton is not installed")
    gpu((9, 0))
    assert choose("cuda").ops.__name__ == "miniserve.kernels.triton.ops"


def test_auto_device():
    assert choose().device.type == ("cuda" if torch.cuda.is_available() else "cpu")
