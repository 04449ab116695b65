"""`Journey`: one output from engine to engine, until it has ended.

From what is known of it at first, its prompt, and from what is known later, when the engine that had it is gone: prompt
and output so far. Both ways are one: where much is to be computed a prefill engine does it and chooses the next token,
then a decode engine takes over with the KV that it left; else the decode engine does all of it.

Invariants: a token is passed on once, in order. What an engine holds for it is given up when the journey ends,
whatever way; what a prefill engine left, as soon as the decode engine has gone on from there.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

from miniserve.core.offer import Offer
from miniserve.errors import InvalidRequestError
from miniserve.server.errors import APIError, EngineDiedError
from miniserve.server.fleet.output import Output
from miniserve.server.fleet.pools import Chosen, Pools
from miniserve.server.messages import Piece
from miniserve.server.reply import Reply

MOST_DEATHS = 3  # of engines that had the output: it may be what they die of

logger = logging.getLogger(__name__)


class Journey:
    """Of one output.

    Args:
        output: what it is.
        pools: the engines.
        reply: where its pieces go.
        on_accepted: called when an engine has accepted it for the first time.

    Attributes:
        has_settled: set when it is where it is decoded, with its KV, or has ended.
    """

    def __init__(self, output: Output, pools: Pools, reply: Reply, on_accepted: Callable[[], None]) -> None:
        self._output, self._pools, self._reply, self._on_accepted = output, pools, reply, on_accepted
        self._is_accepted = False
        self.has_settled = asyncio.Event()

    async def run(self) -> None:
        """Travel. Ends with the output, or with an error of the reply."""
        deaths = 0
        try:
            while self._output.finish_reason is None:
                try:
                    await self._attempt()
                except EngineDiedError:
                    deaths += 1
                    if deaths == MOST_DEATHS:
                        raise
                    logger.warning("an output goes on elsewhere", extra={"num_tokens": len(self._output.tokens)})
            self._pools.meter.ended(len(self._output.tokens))
        except InvalidRequestError as error:
            if self._is_accepted:  # what one engine took, another refused: they are not alike
                self._reply.fail(APIError(500, str(error)))
            else:
                self._reply.refuse(error)
        except APIError as error:
            self._reply.fail(error)
        except Exception as error:
            logger.exception("an output was lost")
            self._reply.fail(APIError(500, f"an error of the server: {type(error).__name__}"))
        finally:
            self.has_settled.set()

    async def _attempt(self) -> None:
        """Go on from what is known, until it has ended, or an engine is gone."""
        output = self._output
        there, num_missing = chosen = await self._pools.for_decode(output)
        async with AsyncExitStack() as left:
            offer = None
            if before := self._pools.for_prefill(output, chosen):
                offer = await self._prefill(before, left)
                if output.finish_reason is not None:
                    return
                there, num_missing = await self._pools.for_decode(output)  # things may have changed
            async with there.computing(output, 1 if offer else num_missing, offer=offer) as reply:
                self._accepted()
                async for piece in reply:
                    await left.aclose()
                    self.has_settled.set()
                    self._pass_on(piece)

    async def _prefill(self, before: Chosen, left: AsyncExitStack) -> Offer | None:
        """Have a token computed by an engine for prompts; what that offers stands until `left` is closed."""
        offer, (member, num_missing) = None, before
        reply = await left.enter_async_context(member.computing(self._output, num_missing, moves=True))
        self._accepted()
        async for piece in reply:
            offer = piece.offer
            self._pass_on(piece)
        return offer

    def _accepted(self) -> None:
        if not self._is_accepted:
            self._is_accepted = True
            self._on_accepted()

    def _pass_on(self, piece: Piece) -> None:
        shown = self._output.take(piece)
        if shown.text or shown.tokens or shown.finish_reason:
            self._reply.put(shown)
