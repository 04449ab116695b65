"""One side of a model whose feed-forward parts have devices of their own: which parameters it has.

Attention's side has all but dense parts and experts: with the routers, since who has the tokens chooses their experts,
and with both ends of the model. A decoder of one side has the modules of the whole; those of the other side are on
torch's meta device, where they have shapes and no memory. So it has no `forward` of the whole.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from miniserve.model.decoder import Decoder, rope_frequencies

Side = Literal["attention", "feed-forward"]


def is_of(side: Side) -> Callable[[str], bool]:
    """Whether a parameter of the decoder, by its name, is of that side."""
    return lambda name: (".mlp." in name and ".mlp.router." not in name) == (side == "feed-forward")


def give_memory(decoder: Decoder, wanted: Callable[[str], bool], device: torch.device) -> None:
    """Put a decoder from the meta device on another one: its wanted parameters, uninitialised."""
    for name, parameter in list(decoder.named_parameters()):
        if wanted(name):
            module, _, leaf = name.rpartition(".")
            setattr(decoder.get_submodule(module), leaf, nn.Parameter(torch.empty_like(parameter, device=device)))
    decoder.device = device
    decoder.inverse_frequencies = rope_frequencies(decoder.config).to(device)
