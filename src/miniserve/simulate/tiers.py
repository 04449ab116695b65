"""Tiers: where KV blocks are kept besides the device: host memory, flash, a context memory on the network.

Several make a stack, the nearest first. Every block that fills up is written to the nearest, in the background and for
nothing; what is used least recently falls out of it, and into the next; what falls out of the last is gone. A prompt's
blocks that the device lacks are read from the nearest tier that has them, each tier over its own link and all at once;
those from further down move to the nearest, and stay where others may want them, too. Only reads take time, and only
whole prefixes are of use.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from itertools import groupby

from miniserve.core.connector import Progress
from miniserve.core.hashing import BlockHash
from miniserve.core.loading import Piece, Seconds, worth_loading
from miniserve.core.request import Request
from miniserve.errors import InvalidRequestError
from miniserve.hardware.cost import Part
from miniserve.simulate.deployment import Deployment
from miniserve.simulate.storage import Link
from miniserve.simulate.tier_plan import TierPlan


class Tier:
    """Blocks by hash, least recently used out first. Several engines may share one.

    Args:
        name: for reports.
        num_blocks: that it holds.
        shared: whether others use it, too.
    """

    def __init__(self, name: str, num_blocks: int, shared: bool = False) -> None:
        if num_blocks < 1:
            raise InvalidRequestError(f"the tier '{name}' has room for {num_blocks} blocks: it needs one at least")
        self.name, self.num_blocks, self.shared = name, num_blocks, shared
        self._blocks: OrderedDict[BlockHash, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: BlockHash) -> bool:
        return block in self._blocks

    def has(self, block: BlockHash) -> bool:
        """Whether it does; it counts as used then."""
        if block not in self._blocks:
            return False
        self._blocks.move_to_end(block)
        return True

    def move_up(self, block: BlockHash) -> None:
        """It is kept in a nearer tier now."""
        if not self.shared:
            del self._blocks[block]

    def put(self, blocks: Sequence[BlockHash]) -> list[BlockHash]:
        """Keep these. Returns what falls out for them."""
        for each in blocks:
            self._blocks[each] = None
            self._blocks.move_to_end(each)
        return [self._blocks.popitem(last=False)[0] for _ in range(len(self._blocks) - self.num_blocks)]


class Tiered:
    """One engine's way to a stack of tiers.

    Args:
        stack: each tier, shared or its own, with the link that reads go through; the nearest first.
        block_size: tokens.
        block_bytes: of all devices of the engine.
        clock: the engine's.
        recompute_s: how long tokens take to compute, if only what is faster to load is loaded; None: whatever is found.
    """

    def __init__(
        self, stack: Sequence[tuple[Tier, Link]], *, block_size: int, block_bytes: float, clock: Callable[[], float],
        recompute_s: Seconds | None = None,
    ) -> None:  # fmt: skip
        self._stack, self._size, self._bytes, self._clock = stack, block_size, block_bytes, clock
        self._recompute_s = recompute_s
        self._loading: list[tuple[float, Request, int]] = []
        self._origins: dict[str, Counter[str]] = {}
        self._ended: list[str] = []

    @property
    def next_s(self) -> float:
        """When the next load will have ended; infinite if none is under way."""
        return min((end_s for end_s, _, _ in self._loading), default=math.inf)

    def origins(self, request: Request) -> Counter[str]:
        """How many tokens of a request have come from each tier, by name; of an ended one until the next load."""
        return self._origins.get(request.request_id, Counter())

    def held(self, blocks: Sequence[BlockHash]) -> int:
        """How many of these, from the first on without a gap, are in its own tiers; none counts as used for it."""
        own = [tier for tier, _ in self._stack if not tier.shared]
        absent = (at for at, block in enumerate(blocks) if not any(block in tier for tier in own))
        return next(absent, len(blocks))

    def lookup(self, request: Request, num_computed: int) -> int:
        """Of `KVConnector`."""
        first, full = num_computed // self._size, (len(request.token_ids) - 1) // self._size
        places = self._places(request.block_hashes(self._size, full)[first:full])
        if not places or self._recompute_s is None:
            return len(places) * self._size
        return worth_loading(num_computed, self._pieces(places), self._recompute_s)

    def load(self, request: Request, start: int, num_tokens: int) -> None:
        """Of `KVConnector`."""
        first, end = start // self._size, (start + num_tokens) // self._size
        wanted = request.block_hashes(self._size, end)[first:end]
        places = self._places(wanted)
        assert len(places) == len(wanted), "what was looked up is still there"
        for each in self._ended:
            del self._origins[each]
        self._ended.clear()
        arrived_s, origins = 0.0, self._origins.setdefault(request.request_id, Counter())
        for place, number in Counter(places).items():
            tier, link = self._stack[place]
            arrived_s = max(arrived_s, link.send(number * self._bytes, self._clock()))
            origins[tier.name] += number * self._size
        self._loading.append((arrived_s, request, num_tokens))
        further = [(block, place) for block, place in zip(wanted, places, strict=True) if place]
        for block, place in further:
            self._stack[place][0].move_up(block)
        self._keep([block for block, _ in further])

    def computed(self, request: Request, first_block: int) -> Sequence[int]:
        """Of `KVConnector`."""
        self._keep(request.block_hashes(self._size, request.num_registered)[first_block : request.num_registered])
        return ()

    def finished(self, request: Request) -> Sequence[int]:
        """Of `KVConnector`."""
        if request.request_id in self._origins:
            self._ended.append(request.request_id)
        return ()

    def poll(self, wait: bool) -> Progress:  # noqa: ARG002
        """Of `KVConnector`."""
        now_s = self._clock()
        ended = [(request, tokens) for end_s, request, tokens in self._loading if end_s <= now_s]
        if ended:
            self._loading = [each for each in self._loading if each[0] > now_s]
        return Progress(ended)

    def _places(self, blocks: Sequence[BlockHash]) -> list[int]:
        """The nearest tier that has each, as far as all are somewhere."""
        places = []
        for block in blocks:
            place = next((at for at, (tier, _) in enumerate(self._stack) if tier.has(block)), None)
            if place is None:
                break
            places.append(place)
        return places

    def _pieces(self, places: Sequence[int]) -> list[Piece]:
        """Runs of blocks from one tier, each with what it adds to the time of those before: tiers are read at once."""
        pieces, so_far, known_s = [], Counter[int](), 0.0
        for place, run in groupby(places):
            number = len(list(run))
            so_far[place] += number
            end_s = max(known_s, self._stack[place][1].seconds(so_far[place] * self._bytes, self._clock()))
            pieces.append(Piece(number * self._size, end_s - known_s))
            known_s = end_s
        return pieces

    def _keep(self, blocks: Sequence[BlockHash]) -> None:
        for tier, _ in self._stack:
            blocks = tier.put(blocks)
            if not blocks:
                return


class Stacks:
    """Gives each engine its stack, with the tiers that are shared in all of them.

    Args:
        plans: the nearest first, no two of one name.
        if_faster: load only what takes longer to compute; else whatever is found.
        num_devices: with KV, of all engines that have them.
    """

    def __init__(self, plans: Sequence[TierPlan], if_faster: bool = False, num_devices: float = 1) -> None:
        self._if_faster, self._devices = if_faster, num_devices
        names = [plan.name for plan in plans]
        if twice := next((name for name in names if names.count(name) > 1 or name == "device"), None):
            raise InvalidRequestError(f"a tier's name, '{twice}', is taken: each has its own, and none is 'device'")
        self._plans = plans
        self._shared: dict[str, tuple[Tier, float]] = {}

    def connector(self, deployment: Deployment, clock: Callable[[], float]) -> Tiered | None:
        """A new engine's; None without tiers.

        Raises:
            InvalidRequestError: a tier is too small, a link is none, or engines would share blocks of several sizes.
        """
        if not self._plans:
            return None
        block_size = deployment.block_size
        block_bytes = block_size * deployment.kv_sent_bytes
        step_time = deployment.step_time
        plans = [plan.of(deployment.parallel.tensor, self._devices) for plan in self._plans]
        stack = [(self._tier(plan, block_bytes), plan.link()) for plan in plans]
        return Tiered(
            stack, block_size=block_size, block_bytes=block_bytes, clock=clock,
            recompute_s=(lambda start, tokens: step_time.seconds([Part(start, tokens)])) if self._if_faster else None,
        )  # fmt: skip

    def _tier(self, plan: TierPlan, block_bytes: float) -> Tier:
        made = Tier(plan.name, plan.num_blocks(block_bytes), plan.shared)
        if not plan.shared:
            return made
        tier, size = self._shared.setdefault(plan.name, (made, block_bytes))
        if size != block_bytes:
            sizes = f"{size:,.0f} and {block_bytes:,.0f} bytes"
            raise InvalidRequestError(f"the tier '{plan.name}' is shared by engines whose KV blocks are {sizes}")
        return tier
