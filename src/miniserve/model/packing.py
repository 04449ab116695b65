"""Weights of few bits: which of a decoder's matrices get them, how a tensor is rounded to them, and put there.

A matrix is packed as a whole, from all the tensors that it is fused from, each rounded by itself. Norms, routers
and an embedding that is not the unembedding too are never packed.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from miniserve.errors import InvalidRequestError
from miniserve.kernels.expert_stack import ExpertStack
from miniserve.kernels.formats import E4M3, INT8, Format
from miniserve.kernels.groups import Bits, Groups
from miniserve.kernels.linear_weight import LinearWeight
from miniserve.kernels.scaled_gemm import Rows, quantise_rows
from miniserve.model.checkpoint import Checkpoint
from miniserve.model.decoder import Decoder
from miniserve.model.layers import Linear
from miniserve.model.mixture import STACKS, SparseMLP
from miniserve.model.weight_plan import Part

Form = Bits | Format  # groups of so many bits, or rows of a format


def packed_forms(
    checkpoint: Checkpoint, decoder: Decoder, plan: list[Part], quantization: str, *, rows: bool = False
) -> dict[str, Form]:
    """Which weights of linear layers and experts are to be of few bits, and in what form.

    The unembedding, which tokens are told apart by, has 8 bits even with "int4" and stays as it is in rows. With
    "file", only what stays exactly what it is in the file: a matrix that is fused from tensors of several types,
    without whole blocks, or in rows of 8 bits that are also looked up as an embedding, is expanded.
    """
    if quantization == "none":
        return {}
    sources: dict[str, list[str]] = {}
    for part in plan:
        sources.setdefault(part.parameter, []).append(part.name)
    found: dict[str, Form] = {}
    for name, shape in _matrices(decoder):
        module_name = name.removesuffix(".weight")
        if name not in sources:
            continue
        if quantization == "fp8" or (quantization == "int8" and rows):
            if module_name != "unembed":
                found[name] = E4M3 if quantization == "fp8" else INT8
            continue
        if quantization != "file":
            found[name] = 8 if quantization == "int8" or module_name == "unembed" else 4
            continue
        formats = {checkpoint.row_format(source) for source in sources[name]}
        if (row_format := formats.pop()) and not formats:
            if module_name != "unembed" or decoder.embed is not None:
                found[name] = row_format
            continue
        stored = {checkpoint.bits(source) for source in sources[name]}
        bits = stored.pop()
        if bits and not stored and LinearWeight.can_pack(shape, bits):
            found[name] = bits
    return found


def _matrices(decoder: Decoder) -> Iterator[tuple[str, tuple[int, int]]]:
    """The parameters that may have few bits, and the shape of one matrix [N, K] of each."""
    for name, module in decoder.named_modules():
        if isinstance(module, Linear) and not name.endswith(".router"):
            yield f"{name}.weight", (module.weight.shape[0], module.weight.shape[1])
        elif isinstance(module, SparseMLP):
            for stack in STACKS:
                _, rows, columns = getattr(module, stack).shape
                yield f"{name}.{stack}", (rows, columns)


def rounded(checkpoint: Checkpoint, name: str, form: Form, device: torch.device, *, keep: bool) -> Groups | Rows:
    """A tensor in few bits: the file's own groups or rows, or rounded from its values."""
    try:
        if isinstance(form, Format):
            if checkpoint.row_format(name) is form:
                data, scales = checkpoint.rows(name)
                return Rows(data.to(device), scales.to(device))
            return quantise_rows(checkpoint.load(name).to(device).float(), form)
        return checkpoint.groups(name) if keep else Groups.rounding(checkpoint.load(name), form)
    except ValueError as error:
        what = form.name if isinstance(form, Format) else f"{form} bits"
        raise InvalidRequestError(f"{name} cannot be rounded to {what}: {error}") from error


def pack(decoder: Decoder, parameter: str, parts: list[Groups | Rows]) -> None:
    """Put the rows of several tensors, all of one form, in the place of a linear layer's weight, or of a stack."""
    name = parameter.removesuffix(".weight")
    owner, _, last = name.rpartition(".")
    holder = decoder.get_submodule(owner if last in STACKS and not parameter.endswith(".weight") else name)
    groups = [part for part in parts if isinstance(part, Groups)]
    try:
        if groups:
            matrix = LinearWeight.packed(Groups.stacked(groups))
        else:
            rows = [part for part in parts if isinstance(part, Rows)]
            matrix = LinearWeight(*(torch.cat(each) for each in zip(*rows, strict=True)))
        if isinstance(holder, SparseMLP):
            holder.pack(last, ExpertStack(matrix, len(holder.gate_up if last == "gate_up" else holder.down)))
        else:
            assert isinstance(holder, Linear)
            holder.pack(replace(matrix, bias=holder.bias))
    except ValueError as error:
        raise InvalidRequestError(f"the weight of {name} cannot have {groups[0].bits} bits: {error}") from error
