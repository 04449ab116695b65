"""As much of an `EngineClient` as a fleet uses, played here in virtual time: it dies whenever a test says so."""

import asyncio
from collections import Counter

from miniserve.core.block_pool import BlockStored
from miniserve.core.hashing import block_hashes
from miniserve.core.offer import Offer
from miniserve.errors import InvalidRequestError
from miniserve.server.errors import EngineDiedError, unavailable
from miniserve.server.messages import Cached, Facts, Piece
from miniserve.server.reply import Reply

SIZE = 4
STEP_S = 0.1


def token(prompt, seed, index):
    return hash((tuple(prompt), seed, index)) % 1000


def output(prompt, seed, count):
    return [token(prompt, seed, index) for index in range(count)]


class Engine:
    """As much of an `EngineClient` as a fleet uses. A prompt takes a step for each block of it, a token a step."""

    def __init__(self, name):
        self.name = name
        self.facts = Facts(name, 4096, 8, 512, 64, SIZE, True, "a model")
        self.ready, self.num_restarts, self.on_cached = False, 0, None
        self.open, self.held, self.seen, self.names, self.watched = {}, {}, Counter(), [], []
        self.watch = self.watched.append

    async def start(self):
        self.ready = True
        self.on_cached(Cached([], from_nothing=True))

    async def stop(self):
        self.ready = False

    async def submit(self, prompts, params, *, cache_salt, moves, prior, offer, name):
        self.names.append(name)
        if not self.ready:
            raise unavailable("not there")
        (prompt,) = prompts
        assert params.n == 1
        assert list(prior) == output(prompt, params.seed, len(prior)), "what has come, all of it, and in order"
        self.seen["moves" if moves else "fetches" if offer else "computes"] += 1
        reply = Reply(object(), 1, lambda: self._close(reply))
        self.open[reply] = asyncio.create_task(self._work(reply, prompt, params, moves, len(prior), offer))
        try:
            await reply.accepted
        except BaseException:
            reply.close()
            raise
        return reply

    def _close(self, reply):
        self.open.pop(reply).cancel()
        self.held.pop(reply, None)

    async def _work(self, reply, prompt, params, moves, at, offer):
        await asyncio.sleep(STEP_S)
        if 666 in prompt:
            reply.refuse(InvalidRequestError("the devil's prompt"))
            return
        reply.accept()
        if 13 in prompt:
            self.die(0.0)
        fetched = offer is not None and offer.source() is not None
        await asyncio.sleep(STEP_S * (1 if fetched else len(prompt) // SIZE))
        self.on_cached(Cached([BlockStored(each, None, []) for each in block_hashes(prompt, SIZE, "a model", "salt")]))
        cached = 4 if self.name.startswith("p") else 0
        while at < params.max_tokens:
            await asyncio.sleep(STEP_S)
            next_one = token(prompt, params.seed, at)
            at += 1
            reason = "length" if at == params.max_tokens else None
            reply.put(Piece(0, f"{next_one} ", [next_one], None, reason, None, cached, spent_s=1.0))
            if moves and reason is None:
                await asyncio.sleep(STEP_S)
                self.held[reply] = True
                offered = Offer(len(prompt) + at - 1, 0, 0.0, lambda: self.held.get(reply))
                reply.put(Piece(0, "", [], None, "moved", None, cached, offer=offered))
                return

    def die(self, back_in_s):
        if self.ready:
            self.ready = False
            self.num_restarts += 1
            self.held.clear()
            for reply, task in self.open.items():
                task.cancel()
                reply.fail(EngineDiedError())
            asyncio.get_running_loop().call_later(back_in_s, lambda: asyncio.ensure_future(self.start()))
