"""Running the server until a signal ends it.

The engine is loaded before the first connection is accepted, on a port that is taken before that: a port in use and a
model that cannot be loaded are errors of the start. On SIGTERM or Ctrl-C no more requests are taken, `/ready` says so,
and what runs is finished, within a limit; a second signal ends it at once. On SIGHUP keys and certificate are read
again.
"""

import asyncio
import contextlib
import logging
import socket
import time
from types import FrameType
from typing import Any

import uvicorn

from miniserve.errors import InvalidRequestError
from miniserve.server.access import Access
from miniserve.server.app import ServerSettings, make_app
from miniserve.server.connection import Connection
from miniserve.server.errors import unavailable
from miniserve.server.exchange import MAX_HEADER_BYTES
from miniserve.server.reload import Reloads
from miniserve.server.rollout.admin import Control
from miniserve.server.rollout.lineup import Lineup
from miniserve.server.tls import Certificate

KEEP_ALIVE_S = 30
MAX_CONNECTIONS = 4096  # a request on one more gets a 503
SPARE_FILES = 256  # open besides
CLOSE_TIMEOUT_S = 5  # for what has been computed to reach slow readers

logger = logging.getLogger(__name__)


class HTTPServer(uvicorn.Server):
    """uvicorn's, with a drain before its shutdown."""

    def __init__(self, config: uvicorn.Config, lineup: Lineup, drain_s: float) -> None:
        super().__init__(config)
        self._lineup, self._drain_s = lineup, drain_s
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """A signal has come."""
        if self._deadline is not None:
            self.should_exit = self.force_exit = True
        self._lineup.draining = True
        self._deadline = time.monotonic() + self._drain_s

    async def on_tick(self, counter: int) -> bool:
        """Some ten times a second: whether to exit."""
        if self._deadline is not None:
            late = time.monotonic() > self._deadline
            if late:
                self._lineup.fail_all(unavailable("the server is shutting down"))
            self.should_exit = self.should_exit or late or not self._lineup.num_open
        return await super().on_tick(counter)


def bind(host: str, port: int) -> socket.socket:
    """Take a port; 0: any free one.

    Raises:
        InvalidRequestError: it is in use, or there is no such address.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise InvalidRequestError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


def allow_files(number: int) -> None:
    """Raise this process's limit on open files, connections among them, as far as it may itself."""
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def serve(
    lineup: Lineup,
    settings: ServerSettings,
    access: Access,
    listener: socket.socket,
    *,
    drain_s: float,
    control: Control | None = None,
    certificate: Certificate | None = None,
    reloads: Reloads | None = None,
) -> None:
    """Start the engines, serve until a signal comes, end the engines.

    Args:
        lineup: not started yet.
        settings: see `ServerSettings`.
        access: who may ask.
        listener: from `bind`.
        drain_s: how long requests may go on after the signal.
        control: see `make_app`.
        certificate: for TLS; None: whoever sees the packets reads them.
        reloads: what is read again meanwhile; None: SIGHUP ends the process, as it does others.

    Raises:
        MiniserveError: they could not be started.
    """
    allow_files(MAX_CONNECTIONS + SPARE_FILES)
    reading = asyncio.create_task(reloads.run()) if reloads else None
    try:
        await lineup.start()
        config = uvicorn.Config(
            make_app(lineup, settings, access, control),
            http=Connection,
            limit_concurrency=MAX_CONNECTIONS,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
        )
        config.load()
        if certificate:
            config.ssl = certificate.context
            logger.info("TLS", extra={"certificate_expires": certificate.not_after})
        server = HTTPServer(config, lineup, drain_s)
        listener.listen(config.backlog)  # before its address is printed: whoever reads that may connect
        host, port = listener.getsockname()[:2]
        print_address("https" if certificate else "http", host, port, lineup)
        await server.serve(sockets=[listener])
    finally:
        if reading:
            reading.cancel()
        await lineup.stop()
        if settings.traces:
            await asyncio.to_thread(settings.traces.shutdown)  # sends what it has


def print_address(scheme: str, host: str, port: int, lineup: Lineup) -> None:
    """Where it is to be found, for people: the only thing on stdout."""
    shown = f"[{host}]" if ":" in host else host
    print(f"{lineup.model}: {lineup.facts.description}. {scheme}://{shown}:{port}/v1", flush=True)


def run_server(lineup: Lineup, settings: ServerSettings, access: Access, listener: socket.socket, **how: Any) -> None:
    """`serve`, on an event loop of its own."""
    asyncio.run(serve(lineup, settings, access, listener, **how))
