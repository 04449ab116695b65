"""`ApartModelRunner`: the executor of an engine in two parts. A `ModelRunner`, but for how hidden states come about."""

from torch import Tensor

from miniserve.core.executor import InFlight, Step
from miniserve.fleet.afd.ranks import ApartRanks
from miniserve.model.decoder import Decoder
from miniserve.runtime.batch import Batch
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.model_runner import ModelRunner
from miniserve.runtime.rank_process import CacheShape


class ApartModelRunner(ModelRunner):
    """Computes steps together with the other ranks.

    Args:
        decoder: rank 0's: attention's side, and of that its slice.
        cache: of its heads.
        shape: the cache's, which is that of all ranks of attention.
        ranks: the others.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, shape: CacheShape, ranks: ApartRanks) -> None:
        super().__init__(decoder, cache, shape.block_size)
        self._ranks = ranks
        self._side = ranks.make_caches(decoder, cache, shape)

    def launch(self, step: Step) -> InFlight:
        """See `ModelRunner.launch`; without pending tokens the result is there when it returns.

        Raises:
            RankError: a rank is gone; this step and all that would follow are lost.
        """
        computed = super().launch(step)
        self._ranks.check()  # on a GPU it was only queued; what was cut short gave nonsense
        return computed

    def _forward(self, batch: Batch) -> Tensor:
        with self._ranks.computing(batch):
            return self._side(batch)
