"""How many workers there are to be, through Dynamo's virtual connector: said here, done by whoever starts workers.

Both sides meet in etcd, whose address is in `ETCD_ENDPOINTS`. A decision stands until the next one; it is done when the
other side says so. Besides `worker.py`, which serves, this is the one module that touches Dynamo.
"""

import asyncio
from typing import Any

from dynamo._core import DistributedRuntime, VirtualConnectorClient, VirtualConnectorCoordinator

from miniserve.core.scaling import Counts

CHECK_S, PATIENCE_S = (
    1,
    1800,
)  # Dynamo's: between two looks at whether a decision is done, and how long it is waited for


def runtime() -> Any:
    """This process's part in a deployment; `shutdown()` it at the end."""
    return DistributedRuntime(asyncio.get_running_loop(), "etcd", "tcp", event_plane="zmq")


class Publisher:
    """Says how many.

    Args:
        runtime: see above.
        namespace: the deployment's.
    """

    def __init__(self, runtime: Any, namespace: str) -> None:
        self._coordinator = VirtualConnectorCoordinator(runtime, namespace, CHECK_S, PATIENCE_S, PATIENCE_S // CHECK_S)

    async def start(self) -> None:
        """Before anything is said."""
        await self._coordinator.async_init()

    async def publish(self, counts: Counts) -> None:
        """From now on there are to be so many."""
        await self._coordinator.update_scaling_decision(counts.prefill, counts.decode)

    async def is_done(self) -> bool:
        """Whether the last decision is, as the other side says."""
        return bool(await self._coordinator.is_scaling_ready())


class Follower:
    """Hears how many, and says when it is so; see `Publisher`."""

    def __init__(self, runtime: Any, namespace: str) -> None:
        self._client = VirtualConnectorClient(runtime, namespace)
        self._latest: Any = None

    async def wanted(self) -> Counts:
        """Waits for the next decision."""
        await self._client.wait()
        self._latest = await self._client.get()
        return Counts(self._latest.num_prefill_workers, self._latest.num_decode_workers)

    async def done(self) -> None:
        """The last decision is."""
        await self._client.complete(self._latest)
