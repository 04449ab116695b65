"""`PagedAttention`: where the decoder's attention meets the paged KV cache."""

from torch import Tensor

from miniserve.kernels.operators import Operators
from miniserve.runtime.batch import Batch
from miniserve.runtime.kv_cache import KVCache


class PagedAttention:
    """One step's `decoder.Attend`: new keys and values go to their slots, queries read through the block table."""

    def __init__(self, ops: Operators, cache: KVCache, batch: Batch) -> None:
        self._ops, self._cache, self._batch = ops, cache, batch

    def __call__(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """qkv [T, N + 2·G, D]; cos and sin [T, D/2] -> [T, N, D]."""
        (keys, values), batch = self._cache.layer(layer), self._batch
        k_scale, v_scale = self._cache.layer_scales(layer)
        slots, ops = batch.slot_mapping, self._ops
        q = ops.rope_store(qkv, cos, sin, keys, values, slots, k_scale=k_scale, v_scale=v_scale)
        places = batch.query_start, batch.context_lens, batch.block_table
        return ops.paged_attention(q, keys, values, *places, k_scale=k_scale, v_scale=v_scale)
