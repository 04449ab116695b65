"""`load_weights`: a decoder with a checkpoint's weights.

The plan is checked before anything is allocated or read. Linear layers whose weights are to be of few bits are packed
one by one, as their last tensor comes in: at no time are there two copies of a model.
"""

from collections import Counter, defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from miniserve.kernels import reference
from miniserve.kernels.groups import Groups
from miniserve.kernels.operators import Operators
from miniserve.kernels.scaled_gemm import Rows
from miniserve.model.checkpoint import Checkpoint
from miniserve.model.communicator import ALONE, Communicator
from miniserve.model.decoder import Decoder
from miniserve.model.expert_plan import ExpertPlan
from miniserve.model.packing import pack, packed_forms, rounded
from miniserve.model.sides import Side, give_memory, is_of
from miniserve.model.weight_plan import check_plan


@torch.no_grad()
def load_weights(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    ops: Operators = reference,
    compute_dtype: torch.dtype | None = None,
    quantization: str = "none",
    rows: bool = False,
    communicator: Communicator = ALONE,
    experts: ExpertPlan | None = None,
    side: Side | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Decoder:
    """A decoder with the checkpoint's weights, converted one tensor at a time.

    Args:
        checkpoint: where the weights are.
        dtype, device, ops, compute_dtype: of the decoder.
        quantization: of linear layers and experts: "none", "int8", "int4", "fp8" or "file" (see `choices.choose`).
            Embedding, norms and routers stay in `dtype`.
        rows: whether "int8" means rows with a scale, as a GPU reads them, and not groups.
        communicator, experts: of the decoder, if the checkpoint is one rank's slice.
        side: of which the weights are wanted alone; see `sides`.
        progress: called with (tensors done, tensors in all) after each tensor.

    Raises:
        TensorError: see `check_plan`.
        InvalidRequestError: a layer cannot be packed. Names it.
    """
    plan, wanted = check_plan(checkpoint), is_of(side) if side else None
    decoder = Decoder(
        checkpoint.config,
        dtype=dtype,
        device=torch.device("meta") if wanted else device,
        ops=ops,
        compute_dtype=compute_dtype,
        communicator=communicator,
        experts=experts,
    )
    if wanted:
        plan = [part for part in plan if wanted(part.parameter)]
        give_memory(decoder, wanted, device)
    targets: dict[str, Tensor] = dict(decoder.named_parameters())
    packed = packed_forms(checkpoint, decoder, plan, quantization, rows=rows)
    awaited = Counter(part.parameter for part in plan)
    parts: defaultdict[str, list[Groups | Rows]] = defaultdict(list)  # of matrices of which tensors are still to come
    for done, part in enumerate(plan, start=1):
        form = packed.get(part.parameter)
        awaited[part.parameter] -= 1
        if form:
            parts[part.parameter].append(rounded(checkpoint, part.name, form, device, keep=quantization == "file"))
            if not awaited[part.parameter]:
                pack(decoder, part.parameter, parts.pop(part.parameter))
        else:
            target = targets[part.parameter]
            if part.expert is not None:
                target = target[part.expert]
            target[part.start : part.start + part.shape[0]].copy_(checkpoint.load(part.name))
        if progress:
            progress(done, len(plan))
    return decoder.requires_grad_(False).eval()
