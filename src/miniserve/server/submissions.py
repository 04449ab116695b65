"""`Submissions`: what an engine has been given, from the server's message to the last piece of its outputs.

A submission's grammar is compiled first, by a thread of its own, one by one, while steps go on. Then each prompt is a
generation of the text engine, named after the submission's key; what a step makes of them goes back under that key.

Invariants: a submission is answered once, by `Accepted` or `Refused`, unless it is aborted before; what is aborted or
has ended is forgotten. All but the compiling is done in the engine's thread, between steps.
"""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from miniserve.core.grammar import Grammar
from miniserve.errors import InvalidRequestError
from miniserve.server.departures import Departures
from miniserve.server.messages import Abort, Accepted, FromEngine, Piece, Refused, Submit

if TYPE_CHECKING:
    from miniserve.fleet.moves import Moves
    from miniserve.runtime.generation import Delta, Generation
    from miniserve.runtime.text_engine import TextEngine


class Compiled(NamedTuple):
    """A submission whose grammar has been compiled, or cannot be."""

    submit: Submit
    error: Exception | None


class Submissions:
    """Of one engine.

    Args:
        text_engine: computes them.
        moves: what a request takes along to another engine; None: nobody leaves.
        send: sends an answer to the server.
        put: called by the compiling thread; what is put there is to come to `go_on`.
    """

    def __init__(
        self,
        text_engine: "TextEngine",
        moves: "Moves | None",
        send: Callable[[FromEngine], None],
        put: Callable[[Compiled], None],
    ) -> None:
        self._text, self._moves, self._send, self._put = text_engine, moves, send, put
        self._compiler = ThreadPoolExecutor(1, "grammars")
        self._compiling: set[int] = set()
        self._live: dict[int, list[Generation]] = {}
        self._owner: dict[str, tuple[int, int]] = {}  # a generation's id: its key, and the index of its first choice
        self._departures = Departures(text_engine, moves)

    def submit(self, submit: Submit) -> None:
        """Begin with one, or have its grammar compiled first."""
        grammar = submit.params.grammar
        if grammar is None or self._text.grammars.has(grammar, submit.cache_salt):
            self._begin(submit)
        else:
            self._compiling.add(submit.key)
            self._compiler.submit(self._compile, submit, grammar)

    def _compile(self, submit: Submit, grammar: Grammar) -> None:
        """In the compiler's thread."""
        error: Exception | None = None
        try:
            self._text.grammars.compile(grammar, submit.cache_salt)
        except Exception as failure:
            error = failure
        self._put(Compiled(submit, error))

    def go_on(self, compiled: Compiled) -> None:
        """Begin with one whose grammar is compiled. Raises what compiling did, unless it is the sender's fault."""
        submit, error = compiled
        if submit.key not in self._compiling:
            return  # aborted meanwhile
        self._compiling.remove(submit.key)
        if isinstance(error, InvalidRequestError):
            self._send(Refused(submit.key, str(error)))
        elif error:
            raise error
        else:
            self._begin(submit)

    def _begin(self, submit: Submit) -> None:
        try:
            made = [
                self._text.make(
                    prompt,
                    submit.params,
                    request_id=_request_id(submit, index),
                    cache_salt=submit.cache_salt,
                    prior=submit.prior,
                    offer=submit.offer,
                )
                for index, prompt in enumerate(submit.prompts)
            ]
            if submit.offer and self._moves:
                self._moves.check(submit.offer)
        except InvalidRequestError as error:
            # Without our name for the request, which says nothing to whoever sent it.
            message = re.sub(rf"^(request )?{submit.key}\.\d[^:]*: ", "", str(error))
            self._send(Refused(submit.key, message))
            return
        for index, generation in enumerate(made):
            self._text.add(generation)
            self._owner[generation.request_id] = submit.key, index * submit.params.n
            if submit.moves:
                self._departures.expect(generation.request_id, submit.key)
        self._live[submit.key] = made
        self._send(Accepted(submit.key))

    def abort(self, abort: Abort) -> None:
        """Nobody waits for one any more."""
        self._compiling.discard(abort.key)
        self._departures.withdraw(_request_id(abort, 0))
        for generation in self._live.pop(abort.key, ()):
            self._text.abort(generation.request_id)
            self._owner.pop(generation.request_id, None)

    def pieces(self, deltas: Sequence["Delta"]) -> list[tuple[int, Piece]]:
        """What a step has made, by key; and of those that have left, where their KV can be fetched."""
        pieces = [self._piece(delta) for delta in deltas]
        for delta in deltas:
            self._departures.after(delta)
        pieces += self._departures.pieces()
        for generation in {delta.generation for delta in deltas if delta.generation.finished}:
            self._forget(generation)
        return pieces

    def _piece(self, delta: "Delta") -> tuple[int, Piece]:
        generation, choice, text, tokens = delta
        request, params = choice.request, generation.params
        key, first = self._owner[generation.request_id]
        begins = bool(tokens) and request.num_output_tokens == len(tokens)
        return key, Piece(
            first + choice.index,
            text,
            list(tokens),
            request.logprobs[len(request.logprobs) - len(tokens) :] if params.logprobs is not None else None,
            choice.finish_reason.value if choice.finish_reason else None,
            choice.stop_reason,
            request.num_reused,
            list(request.prompt_logprobs) if begins and params.prompt_logprobs is not None else None,
            spent_s=request.times.newly_spent_s(),
        )

    def _forget(self, generation: "Generation") -> None:
        key, _ = self._owner.pop(generation.request_id)
        if all(each.finished for each in self._live.get(key, ())):
            self._live.pop(key, None)  # gone already if two of its prompts ended in this step


def _request_id(of: Submit | Abort, index: int) -> str:
    """Of a submission's prompt: unique by its key, and told to those who watch as `name_of` takes it."""
    return f"{of.key}.{index} {of.name}".rstrip()
