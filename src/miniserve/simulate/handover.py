"""`HandOver`: from an engine that has computed a prompt to one that decodes: choose it, send it the KV, begin there.

The KV goes over the prefill engine's link, but for blocks that the other side has cached. If that engine is down when
it arrives, it waits at the sender. Neither of them is off before it has arrived.
"""

from collections.abc import Callable, Mapping

from miniserve.core.request import Request
from miniserve.simulate.events import Events
from miniserve.simulate.flight import Flight
from miniserve.simulate.pool import Node, Pool
from miniserve.simulate.storage import Delivered, Link

RETRY_S = 1.0  # while an engine that is to go on with a request is down


class HandOver:
    """Between two pools.

    Args:
        to: the engines that decode.
        links: of each engine that prefills.
        events: of the cluster.
        submit: gives a request to an engine.
    """

    def __init__(
        self, to: Pool, links: Mapping[Node, Link], events: Events, submit: Callable[[Flight, Request, Node], None]
    ) -> None:
        self._to, self._links, self._events, self._submit = to, links, events, submit

    def begin(self, origin: Node, flight: Flight) -> None:
        """A prompt has been computed."""
        flight.is_prefill = False
        request = flight.request()
        node = self._to.choose(request, even_if_down=True)
        assert node is not None, "somebody who is down rather than nobody"
        num_bytes = self._to.missing(request, node) * node.instance.deployment.kv_sent_bytes
        arrived_s = self._links[origin].send(num_bytes, self._events.now_s)
        for end in (origin, node):
            end.promised += 1
        self._events.at(arrived_s, lambda: self._deliver(flight, request, origin, node))

    def _deliver(self, flight: Flight, request: Request, origin: Node, node: Node) -> None:
        if node.is_down:
            self._events.at(self._events.now_s + RETRY_S, lambda: self._deliver(flight, request, origin, node))
            return
        connector = node.instance.connector
        assert isinstance(connector, Delivered), "decode engines take what is delivered"
        connector.expect(request)
        self._submit(flight, request, node)
        for end in (origin, node):
            end.promised -= 1
            end.leave()
