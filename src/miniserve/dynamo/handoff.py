"""What a prefill worker sends a decode worker through Dynamo: the first token, and where the prompt's KV is.

Plain JSON, as Dynamo passes it on. What comes is read against its types and its version; places are followed only
between workers of one deployment, whose discovery and request plane others must not reach. How long an offer stands is
told in seconds that are left: clocks of two hosts are not one.
"""

import time
from typing import Any

import msgspec

from miniserve.core.offer import Offer
from miniserve.errors import InvalidRequestError
from miniserve.fleet.rooms import Source
from miniserve.kvstore.nixl import Place as NixlPlace
from miniserve.kvstore.shared_memory import Place as SharedPlace

VERSION = 1


class _Where(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An `Offer`; of its two places one is given."""

    num_tokens: int
    num_bytes: int
    seconds: float
    layout: str
    shared_memory: SharedPlace | None = None
    nixl: NixlPlace | None = None


class Handoff(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request on its way.

    Attributes:
        token: that the prefill worker chose.
        where: its prompt's KV; None: it had to be dropped, and is computed again.
        num_cached: tokens of the prompt that were cached there.
        logprobs: what is to be said of the token.
        version: of this form.
    """

    token: int
    where: _Where | None = None
    num_cached: int = 0
    logprobs: dict[str, Any] = {}
    version: int = VERSION

    @classmethod
    def of(cls, token: int, offer: Offer | None, num_cached: int, logprobs: dict[str, Any]) -> "Handoff":
        """Of a request whose first token has been computed."""
        if offer is None:
            return cls(token=token, num_cached=num_cached, logprobs=logprobs)
        source = offer.source
        assert isinstance(source, Source)
        place = source.place
        where = _Where(
            num_tokens=offer.num_tokens,
            num_bytes=offer.num_bytes,
            seconds=offer.expires_s - time.monotonic(),
            layout=source.layout,
            shared_memory=place if isinstance(place, SharedPlace) else None,
            nixl=place if isinstance(place, NixlPlace) else None,
        )
        return cls(token=token, where=where, num_cached=num_cached, logprobs=logprobs)

    @classmethod
    def from_json(cls, value: Any) -> "Handoff":
        """What `to_json` gave a peer.

        Raises:
            InvalidRequestError: it is none, or of another version.
        """
        try:
            found = msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise InvalidRequestError(f"a prefill worker's result cannot be read: {error}") from error
        if found.version != VERSION:
            raise InvalidRequestError(f"a prefill worker's result has version {found.version}, not {VERSION}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @property
    def offer(self) -> Offer | None:
        """As `Moves` takes it up."""
        where = self.where
        if where is None:
            return None
        source = Source(where.layout, where.nixl or where.shared_memory)
        return Offer(where.num_tokens, where.num_bytes, time.monotonic() + where.seconds, source)
