"""`ExpertPlan`: which rank holds which experts of each layer, and from what loads that was decided.

Every rank makes the same plan from the same numbers, so none is told another's. A layer has as many slots as experts,
and `redundant` more for copies of the busy ones; `core.placement` says which expert is in which slot, by the loads, and
the ranks have as many slots each. Where two copies come to lie on one rank, one is held. Torch-free.

Loads are how many tokens chose each expert, of each layer that has experts (`list[list[int]]`, as `LLM.expert_tokens`
gives it). In a file they are that list in JSON.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from miniserve.core.placement import place
from miniserve.errors import InvalidRequestError
from miniserve.model.config import ModelConfig, MoE

Loads = Sequence[Sequence[float]]


class ExpertOptions(NamedTuple):
    """How experts are to be shared out whole.

    Attributes:
        redundant: slots of a layer beyond one for each expert.
        loads: a file of each layer's experts' loads; None: all alike.
    """

    redundant: int = 0
    loads: Path | None = None

    @classmethod
    def of(cls, expert_parallel: bool, redundant: int, loads: str | Path | None) -> "ExpertOptions | None":
        """As `LLM` takes them; None if experts are not to be shared out.

        Raises:
            InvalidRequestError: the others are given without `expert_parallel`.
        """
        if expert_parallel:
            return cls(redundant, None if loads is None else Path(loads))
        if redundant or loads is not None:
            raise InvalidRequestError("redundant_experts and expert_loads go with expert_parallel only")
        return None


class ExpertPlan(NamedTuple):
    """layers[layer][rank]: the experts that it holds, ascending; a dense layer has no ranks."""

    layers: tuple[tuple[tuple[int, ...], ...], ...]

    @classmethod
    def of(cls, config: ModelConfig, ranks: int, redundant: int = 0, loads: Loads | None = None) -> "ExpertPlan":
        """The plan for the whole model's `config`; its loads as `read_loads` gives them.

        Raises:
            InvalidRequestError: it has no experts, too few, or not as many slots for each rank.
        """
        moe = _experts_of(config, ranks, redundant)
        of_layers = iter(loads or ())
        layers: list[tuple[tuple[int, ...], ...]] = []
        for layer in range(config.num_layers):
            if not config.is_sparse(layer):
                layers.append(())
                continue
            slots = place(next(of_layers, [1] * moe.num_experts), moe.num_experts + redundant, ranks)
            each = len(slots) // ranks
            layers.append(tuple(tuple(sorted(set(slots[at : at + each]))) for at in range(0, len(slots), each)))
        return cls(tuple(layers))

    def held(self, rank: int) -> dict[int, tuple[int, ...]]:
        """{sparse layer: the experts that a rank holds}."""
        return {layer: ranks[rank] for layer, ranks in enumerate(self.layers) if ranks}


def plan_experts(config: ModelConfig, ranks: int, options: ExpertOptions) -> ExpertPlan:
    """`ExpertPlan.of`, its loads read from a file.

    Raises:
        InvalidRequestError: as there, and as `read_loads` does.
    """
    _experts_of(config, ranks, options.redundant)
    loads = None if options.loads is None else read_loads(options.loads, config)
    return ExpertPlan.of(config, ranks, options.redundant, loads)


def read_loads(file: Path, config: ModelConfig) -> list[list[float]]:
    """Loads as they lie in a file.

    Raises:
        InvalidRequestError: it cannot be read, is no JSON list of lists of numbers, or is not of such a model.
    """
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(read, list) or not all(isinstance(row, list) and all(map(_is_number, row)) for row in read):
            raise ValueError("it must be a JSON list of lists of numbers: of each layer with experts, each one's load")
        _check_loads(config, read)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"expert_loads {file}: {error}") from error
    return read


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _experts_of(config: ModelConfig, ranks: int, redundant: int) -> MoE:
    """What is to be shared out, if it can be."""
    moe = config.moe
    if moe is None or not any(map(config.is_sparse, range(config.num_layers))):
        raise InvalidRequestError(f"expert_parallel: this {config.architecture} model is dense, it has no experts")
    experts = moe.num_experts
    if experts < ranks:
        raise InvalidRequestError(f"expert_parallel: {experts} experts are too few for {ranks} ranks")
    if not 0 <= redundant <= experts * (ranks - 1):
        raise InvalidRequestError(
            f"redundant_experts is {redundant}: it must lie between 0 and {experts * (ranks - 1)}, which is a copy of "
            f"each of {experts} experts on each of {ranks} ranks"
        )
    if (experts + redundant) % ranks:
        raise InvalidRequestError(
            f"{experts} experts and redundant_experts {redundant} make {experts + redundant} slots: "
            f"they cannot be shared out among {ranks} ranks"
        )
    return moe


def _check_loads(config: ModelConfig, loads: Loads) -> None:
    sparse = [layer for layer in range(config.num_layers) if config.is_sparse(layer)]
    experts = config.moe.num_experts if config.moe else 0
    if len(loads) != len(sparse):
        raise ValueError(f"it has {len(loads)} layers, the model has {len(sparse)} with experts")
    for layer, row in zip(sparse, loads, strict=True):
        if len(row) != experts:
            raise ValueError(f"layer {layer} has {len(row)} experts in it, and {experts} in the model")
        if not all(0 <= load < float("inf") for load in row):
            raise ValueError(f"layer {layer} has a load that is not a number from 0 up")
