"""What a model takes of one device's memory: bytes of weights, and of KV for each token.

Every device of a tensor-parallel group has its part of each matrix; every expert-parallel rank its part of the experts
and the whole of the rest. Where feed-forward parts have devices of their own (`sides`), theirs is counted apart.
"""

from miniserve.hardware.afd import Sides
from miniserve.hardware.shape import Parallel, Precision, Shape
from miniserve.simulate.speculation import draft_head


def weight_bytes(
    shape: Shape, precision: Precision, parallel: Parallel, *, sides: Sides | None = None, has_draft: bool = False
) -> float:
    """Of one device, a draft head's among them if there is one; of one for attention where there are `sides`."""
    tensor = parallel.tensor
    layers = _attention_bytes(shape, precision, sides) / tensor if sides else _layer_bytes(shape, precision, parallel)
    whole = layers + shape.embedding_parameters * precision.unembedding_bytes / tensor
    if not shape.tied:
        whole += shape.embedding_parameters * precision.embedding_bytes / tensor
    if has_draft:
        join = 2 * shape.hidden**2 * precision.weight_bytes / tensor
        whole += _layer_bytes(draft_head(shape), precision, parallel) + join
    return whole


def kv_token_bytes(shape: Shape, precision: Precision, tensor: int, *, has_draft: bool = False) -> float:
    """KV that one token adds to each device."""
    layers = shape.layers + has_draft
    if shape.latent:
        return layers * shape.latent.kept * precision.kv_bytes  # every device's heads read all of it
    return 2 * layers * max(1.0, shape.kv_heads / tensor) * shape.head_dim * precision.kv_bytes


def kv_sent_bytes(shape: Shape, precision: Precision, *, has_draft: bool = False) -> float:
    """KV of one token that goes to another engine: nothing twice that several devices have."""
    return shape.kv_elements * (shape.layers + has_draft) / shape.layers * precision.kv_bytes


def _attention_bytes(shape: Shape, precision: Precision, sides: Sides) -> float:
    """Of a rank for attention, without the ends."""
    each = shape.attention_parameters + shape.router_parameters
    if sides.shared_stays:
        each += shape.shared_parameters
    return each * precision.weight_bytes


def _layer_bytes(shape: Shape, precision: Precision, parallel: Parallel) -> float:
    """Of one device, what all layers take."""
    embeddings = shape.embedding_parameters * (1 if shape.tied else 2)
    everywhere = shape.parameters - shape.routed_parameters - embeddings
    share = parallel.held(shape.experts) / shape.experts.count if shape.experts else 0
    return (everywhere + shape.routed_parameters * share) * precision.weight_bytes / parallel.tensor
