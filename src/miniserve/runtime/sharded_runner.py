"""`ShardedModelRunner`: the executor of a model that several ranks hold a slice of each.

It is rank 0's, and a `ModelRunner` but for one thing: what it runs the other ranks run too, in the same order.
"""

from torch import Tensor

from miniserve.core.executor import InFlight, Step
from miniserve.model.decoder import Decoder
from miniserve.runtime.batch import Batch
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.model_runner import ModelRunner
from miniserve.runtime.ranks import Ranks


class ShardedModelRunner(ModelRunner):
    """Computes steps together with other ranks.

    Args:
        decoder: this rank's slice of the model.
        cache: this rank's KV memory; the others have caches of as many blocks.
        block_size: tokens a KV block holds.
        ranks: the others.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, block_size: int, ranks: Ranks) -> None:
        super().__init__(decoder, cache, block_size)
        self._ranks = ranks

    def launch(self, step: Step) -> InFlight:
        """See `ModelRunner.launch`; without pending tokens the result is there when it returns.

        Raises:
            RankError: a rank is gone; this step and all that would follow are lost.
        """
        computed = super().launch(step)
        self._ranks.check()  # on a GPU the sums were only queued; one that was cut short gave nonsense
        return computed

    def _forward(self, batch: Batch) -> Tensor:
        with self._ranks.computing(batch):
            return super()._forward(batch)
