"""Grammars for a tokenizer's vocabulary: `Grammars` compiles them, and a `GrammarMatcher` follows one output.

The library is llguidance (the extra `structured`): of the two that fit, it needs no other package, while xgrammar needs
torch, transformers and triton; it takes any tokenizer as a list of bytes; and it refuses the keywords of JSON Schema
that it does not implement, of which xgrammar 0.2.8 ignores several (`uniqueItems`, `contains`, `not`).

Compiling happens before a request is queued: in its maker's thread, or, with `compile`, in any other one before that;
the library lets other threads run meanwhile. It is bounded by the grammar's size, not by a clock: some tenths of a
second at most. A bounded number of grammars is kept compiled, each for the salt it came with alone: that a grammar
takes no time to compile must not tell one tenant what another one uses.

A matcher's state is the tokens that the request has accepted, and nothing else: preemption leaves it as it is, and a
draft's guesses are taken and taken back within one call.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from miniserve.core.grammar import Grammar, ToolCalls
from miniserve.core.request import FinishReason
from miniserve.errors import InvalidRequestError
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.runtime.grammar_source import beginnings, source

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MAX_COMPILED = 64


class Grammars:
    """Compiles grammars for one tokenizer, and keeps the last ones. May be used from several threads.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._compiled: OrderedDict[tuple[str, Grammar], LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, grammar: Grammar, stop_token_ids: frozenset[int], salt: str = "") -> "GrammarMatcher":
        """A matcher at the start of an output.

        Args:
            grammar: what the output must be.
            stop_token_ids: tokens that may end it where the grammar may end.
            salt: of the tenant.

        Raises:
            InvalidRequestError: the grammar does not compile, is too complex, or no output satisfies it; or llguidance
                is not installed.
        """
        compiled = self._kept(grammar, salt) or self.compile(grammar, salt)
        return GrammarMatcher(compiled.deep_copy(), stop_token_ids, self._tokenizer.eos_token_ids)

    def has(self, grammar: Grammar, salt: str = "") -> bool:
        """Whether it is compiled: `matcher` takes no time."""
        return self._kept(grammar, salt) is not None

    def compile(self, grammar: Grammar, salt: str = "") -> "LLMatcher":
        """Compile it, and keep it for `matcher`, which raises the same errors."""
        compiled = self._compile(grammar)  # without the lock: others go on meanwhile
        with self._lock:
            self._compiled[salt, grammar] = compiled
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        return compiled

    def _kept(self, grammar: Grammar, salt: str) -> "LLMatcher | None":
        with self._lock:
            compiled = self._compiled.get((salt, grammar))
            if compiled is not None:
                self._compiled.move_to_end((salt, grammar))
            return compiled

    def _compile(self, grammar: Grammar) -> "LLMatcher":
        matcher = self._parse(grammar)
        if matcher.is_error() and isinstance(grammar, ToolCalls):
            for function in grammar.functions:  # whose is it?
                if (alone := self._parse(function.parameters)).is_error():
                    where = f"the parameters of function {function.name}"
                    raise InvalidRequestError(f"the grammar cannot be used: {where}: {alone.get_error():.500}")
        if matcher.is_error():
            raise InvalidRequestError(f"the grammar cannot be used: {matcher.get_error():.500}")
        first = GrammarMatcher(matcher.deep_copy(), frozenset(), self._tokenizer.eos_token_ids)
        first.mask(())
        if first.failed:
            raise InvalidRequestError("the grammar cannot be satisfied: no token of this model begins such an output")
        for text in beginnings(grammar):
            probe = matcher.deep_copy()
            tokens = self._vocabulary.tokenize_str(text)
            if not probe.consume_tokens(tokens[: probe.validate_tokens(tokens)]):
                raise InvalidRequestError(f"the grammar is too complex: behind {text}: {probe.get_error():.200}")
        return matcher

    def _parse(self, grammar: Grammar) -> "LLMatcher":
        vocabulary = self._vocabulary
        from llguidance import LLMatcher

        try:
            return LLMatcher(vocabulary, source(grammar), log_level=0, limits=_limits())
        except ValueError as error:
            raise InvalidRequestError(f"the grammar cannot be used: {error}") from error
        except BaseException as error:  # a panic of Rust code, whose class cannot be imported, and is no Exception
            if type(error).__name__ != "PanicException":
                raise
            raise InvalidRequestError(f"the grammar cannot be used: the compiler failed on it: {error}") from error

    @cached_property
    def _vocabulary(self) -> "LLTokenizer":
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise InvalidRequestError("a grammar needs llguidance: pip install 'miniserve[structured]'") from error
        return LLTokenizer(
            _Vocabulary(self._tokenizer),  # type: ignore[arg-type]  # it takes what looks like one
            n_vocab=self._tokenizer.vocab_size,
            eos_token=sorted(self._tokenizer.eos_token_ids) or None,
        )


class GrammarMatcher:
    """A `Matcher` (see core/request.py).

    Attributes:
        failed: no token can follow, or the library gave up on a text that is too ambiguous; the output ends with an
            error at its next token.
    """

    def __init__(self, matcher: "LLMatcher", stop_token_ids: frozenset[int], eos_token_ids: frozenset[int]) -> None:
        self._matcher, self._stops, self._eos = matcher, stop_token_ids, eos_token_ids
        self.failed = False

    def mask(self, guesses: Sequence[int]) -> bytes:
        """See `Matcher.mask`."""
        matcher, taken = self._matcher, list(guesses)
        if self._stops.intersection(taken) or matcher.validate_tokens(taken) < len(taken):
            taken = []  # a guess is wrong or ends the output: what follows it is dropped, so any mask will do
        if taken:
            matcher.consume_tokens(taken)
        mask = bytearray(matcher.compute_bitmask())
        may_end, broken = matcher.is_accepting(), matcher.is_error()
        if taken and not broken:
            matcher.rollback(len(taken))
        for token in self._eos:  # the library's are the model's; the request's may be fewer, or more
            mask[token // 8] &= ~(1 << token % 8)
        for token in self._stops if may_end else ():
            mask[token // 8] |= 1 << token % 8
        if broken or mask.count(0) == len(mask):
            self.failed = self.failed or broken or not taken
            return b"\xff" * len(mask)
        return bytes(mask)

    def accept(self, token: int) -> FinishReason | None:
        """See `Matcher.accept`."""
        if not self.failed and token in self._stops:
            return FinishReason.STOP
        if self.failed or not self._matcher.consume_token(token):
            return FinishReason.ERROR
        return FinishReason.STOP if self._matcher.is_stopped() else None


class _Vocabulary:
    """A tokenizer in the form that llguidance reads."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = range(tokenizer.vocab_size)
        self.tokens = [tokenizer.token_bytes(token) for token in ids]
        self.special_token_ids = [token for token in ids if tokenizer.is_special(token)]
        special = set(self.special_token_ids)
        self._by_bytes = {data: token for token, data in enumerate(self.tokens) if data and token not in special}
        self._longest = max(map(len, self._by_bytes), default=0)
        self.bos_token_id = tokenizer.bos_token_id
        self.eos_token_id = min(tokenizer.eos_token_ids, default=0)
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        """How a forced text is written: as the model would, unless its tokenizer changes the text (as NFC does)."""
        try:
            tokens = self._tokenizer.encode(text, add_special_tokens=False)
        except InvalidRequestError:  # a character without a token
            tokens = []
        data = text.encode()
        return tokens if b"".join(self.tokens[token] for token in tokens) == data else self._greedy(data)

    def _greedy(self, data: bytes) -> list[int]:
        """By the longest token each time; up to a byte that no token begins with."""
        tokens: list[int] = []
        at = 0
        while at < len(data):
            pieces = (data[at:end] for end in range(min(len(data), at + self._longest), at, -1))
            piece = next((piece for piece in pieces if piece in self._by_bytes), None)
            if piece is None:
                break
            tokens.append(self._by_bytes[piece])
            at += len(piece)
        return tokens


def _limits() -> "LLParserLimits":
    """So that no grammar takes long to compile, and no token long to follow."""
    from llguidance import LLParserLimits

    return LLParserLimits(initial_lexer_fuel=200_000, max_grammar_size=100_000, verbose_errors=False)
