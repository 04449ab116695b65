"""TLS: a certificate and its key, checked before a connection meets them, and taken anew while connections go on.

Versions below 1.2 are refused, and what else OpenSSL no longer thinks safe. A pair is tried in a handshake with itself,
in memory: whatever OpenSSL has against it (another certificate's key, expired, not for servers) is said at the start
and not by the first client. A key that anybody on the machine may read is refused.

A new pair goes into the context that is in use only after it has passed all that: a broken one changes nothing. It is
shown to connections that come from then on; those that are open have ended their handshakes.
"""

import ssl
import stat
from pathlib import Path

from miniserve.errors import InvalidRequestError


class Certificate:
    """A server's certificate, from files.

    Args:
        chain: PEM: the certificate, and after it those that signed it up to a known one.
        key: PEM, not encrypted: the private key.

    Raises:
        InvalidRequestError: they cannot be used. Names the file and the reason.

    Attributes:
        context: for connections; the same object after `reload`.
        not_after: when it expires, as OpenSSL writes it.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain, self._key = chain, key
        self.context = _new_context()
        self.reload()

    def reload(self) -> None:
        """Read the files again. Raises InvalidRequestError as at first; then the pair that was there stays."""
        trial = _new_context()
        self._load(trial)
        self.not_after = self._try(trial)
        self._load(self.context)

    def _load(self, context: ssl.SSLContext) -> None:
        for path in (self._chain, self._key):
            try:
                path.open("rb").close()
            except OSError as error:
                raise InvalidRequestError(f"TLS: {path} cannot be read: {error.strerror}") from error
        if self._key.stat().st_mode & stat.S_IROTH:
            raise InvalidRequestError(f"TLS: {self._key}: anybody on this machine may read the key: chmod o-r")
        try:
            context.load_cert_chain(self._chain, self._key, password=self._encrypted)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise InvalidRequestError(f"TLS: {self._key} is not the key of {self._chain}") from error
            message = f"TLS: {self._chain} and {self._key} are no PEM certificate and key: {error.reason or error}"
            raise InvalidRequestError(message) from error

    def _encrypted(self) -> str:
        """Instead of OpenSSL asking on the terminal."""
        raise InvalidRequestError(f"TLS: {self._key} is encrypted: the server needs a key without a passphrase")

    def _try(self, context: ssl.SSLContext) -> str:
        """Shake hands with a client that trusts this certificate, and nothing else; gives when it expires."""
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False  # whose name it has is its clients' to know
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        client.load_verify_locations(cadata=self._first_certificate())
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = (
            client.wrap_bio(to_client, to_server, server_side=False),
            context.wrap_bio(to_server, to_client, server_side=True),
        )
        waiting = True
        try:
            while waiting:
                waiting = False
                for end in ends:
                    try:
                        end.do_handshake()
                    except ssl.SSLWantReadError:
                        waiting = True
        except ssl.SSLCertVerificationError as error:
            raise InvalidRequestError(f"TLS: {self._chain}: {error.verify_message}") from error
        except ssl.SSLError as error:
            raise InvalidRequestError(f"TLS: {self._chain} cannot be used: {error.reason or error}") from error
        return str((ends[0].getpeercert() or {})["notAfter"])

    def _first_certificate(self) -> str:
        begin, end = (f"-----{word} CERTIFICATE-----" for word in ("BEGIN", "END"))
        text = self._chain.read_text(errors="replace")
        if begin not in text or end not in text:
            raise InvalidRequestError(f"TLS: {self._chain} has no line {begin}")
        return text[text.index(begin) : text.index(end) + len(end)] + "\n"


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
