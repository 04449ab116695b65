"""A `Backend` without an engine: what it answers, and when, is what a test says."""

import asyncio
from types import SimpleNamespace

from miniserve.core.request import TokenLogprob
from miniserve.server.errors import unavailable
from miniserve.server.messages import Facts, Piece
from miniserve.server.reply import Reply
from miniserve.server.view.records import EngineState


class FakeBackend:
    """Answers every prompt with `tokens`, each as likely as `nats` says; `hold` it, and answers wait for `go`."""

    def __init__(self, tokens=(1, 2, 3), nats=1.0, fails=None):
        self.tokens, self.nats, self.fails = tokens, nats, fails
        self.facts = Facts("a fake", 64, 4, 32, 16, 4)
        self.tokenizer = SimpleNamespace(
            encode=lambda text, max_model_len=None: [ord(each) for each in text], chat_template=None
        )
        self.draining, self.ready, self.num_restarts = False, False, 0
        self.on_update = lambda _: None
        self.stopped = self.watched = False
        self.go = asyncio.Event()
        self.go.set()
        self.asked, self.deleted = [], []
        self._open = set()

    @property
    def num_open(self):
        return len(self._open)

    @property
    def states(self):
        return [EngineState("", self.ready, self.num_restarts)]

    def check_ready(self):
        if not self.ready:
            raise unavailable("it is not ready")

    async def start(self):
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails
        self.ready = True

    async def stop(self):
        self.stopped, self.ready = True, False

    def watch(self, on):
        self.watched = on

    def fail_all(self, error):
        for reply in list(self._open):
            reply.fail(error)

    async def delete_kv(self, cache_salt):
        self.check_ready()
        self.deleted.append(cache_salt)
        return {"device": 2, "disk": 3}

    async def reports(self):
        return []

    async def submit(self, prompts, params, *, cache_salt=""):
        self.check_ready()
        self.asked.append((prompts, params, cache_salt))
        reply = Reply(len(self.asked), params.n * len(prompts), lambda: self._open.discard(reply))
        self._open.add(reply)
        asyncio.get_running_loop().create_task(self._answer(reply, prompts, params))
        return reply

    async def _answer(self, reply, prompts, params):
        await self.go.wait()
        tokens = list(self.tokens)[: params.max_tokens]
        logprobs = [TokenLogprob(token, -self.nats, 1) for token in tokens]
        of_prompt = [None, *(TokenLogprob(token, -self.nats, 1) for token in prompts[0][1:])]
        for choice in range(params.n * len(prompts)):
            text = "".join(map(chr, tokens))
            reply.put(Piece(choice, text, tokens, logprobs, "length", prompt_logprobs=of_prompt))
        self._open.discard(reply)
