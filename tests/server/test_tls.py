"""Certificates and keys, at the start and while the server runs. One server process, some 8 s of CPU."""

import json
import shutil
import signal
import socket
import ssl

import httpx
import pytest

from miniserve.errors import InvalidRequestError
from miniserve.server.access import hash_key, new_key
from miniserve.server.tls import Certificate
from support.certificates import write_certificate

LONG = {"model": "tiny", "prompt": "hello", "max_tokens": 8000, "ignore_eos": True, "stream": True}
SHORT = {"model": "tiny", "prompt": "hello", "max_tokens": 2}


def test_what_cannot_be_used_is_told(tmp_path):
    chain, key = write_certificate(tmp_path, "good")
    assert "GMT" in Certificate(chain, key).not_after
    other, other_key = write_certificate(tmp_path, "other")
    expired = write_certificate(tmp_path, "expired", days=-1)
    locked = write_certificate(tmp_path, "locked", encrypted=True)
    open_key, text = shutil.copy(key, tmp_path / "open.key"), tmp_path / "text"
    open_key.chmod(0o644)
    text.write_text("no PEM")
    text.chmod(0o600)
    other.chmod(0o600)
    for pair, says in [
        ((chain, other_key), "other.key is not the key of .*good.crt"),
        (expired, "expired.crt: certificate has expired"),
        (locked, "locked.key is encrypted"),
        ((chain, open_key), "anybody on this machine may read the key"),
        ((tmp_path / "none", key), "none cannot be read: No such file"),
        ((chain, text), "no PEM certificate and key"),
        ((text, key), "no PEM certificate and key"),
        ((key, other), "no PEM certificate and key"),
    ]:
        with pytest.raises(InvalidRequestError, match=says):
            Certificate(*pair)


def test_a_broken_pair_leaves_the_old_one_in_force(tmp_path):
    chain, key = write_certificate(tmp_path, "good")
    certificate = Certificate(chain, key)
    before, _ = certificate.not_after, write_certificate(tmp_path, "next", days=9)
    shutil.copy(tmp_path / "next.crt", chain)  # without its key
    with pytest.raises(InvalidRequestError, match="is not the key of"):
        certificate.reload()
    assert certificate.not_after == before
    shutil.copy(tmp_path / "good.key", tmp_path / "next.key.old")
    shutil.copy(tmp_path / "next.key", key)
    certificate.reload()
    assert certificate.not_after != before


def shown(server, **options):
    """The certificate that a new connection sees."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for name, value in options.items():
        setattr(context, name, value)
    host, port = server.url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw, context.wrap_socket(raw) as made:
        return ssl.DER_cert_to_PEM_cert(made.getpeercert(binary_form=True)).strip()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")  # it is to be refused
def test_keys_and_certificate_change_while_streams_go_on(start, tmp_path):
    alice, bob = new_key(), new_key()
    keys = tmp_path / "keys.toml"

    def write_keys(*those):
        keys.write_text("".join(f'[t{at}]\nsha256 = "{hash_key(key)}"\n' for at, key in enumerate(those)))

    def status(key):
        return server.http.post("/v1/completions", json=SHORT, headers={"authorization": f"Bearer {key}"}).status_code

    write_keys(alice, bob)
    chain, key = write_certificate(tmp_path, "first")
    first = chain.read_text().strip()
    options = ("--tls-cert", str(chain), "--tls-key", str(key), "--api-keys-file", str(keys))
    with start(*options, verify=ssl.create_default_context(cafile=chain)) as server:
        assert (status(alice), status(bob), shown(server)) == (200, 200, first)
        strict = server.http.get("/health").headers["strict-transport-security"]
        assert strict == "max-age=31536000"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            shown(server, maximum_version=ssl.TLSVersion.TLSv1_1)
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url.replace("https", "http") + "/health")

        with server.http.stream(
            "POST", "/v1/completions", json=LONG, headers={"authorization": f"Bearer {bob}"}
        ) as reply:
            lines = reply.iter_lines()
            next(lines)
            write_keys(alice)  # no signal is needed
            server.until(lambda: status(bob) == 401)
            keys.write_text("[alice")  # and a broken file takes nobody's key
            second, second_key = write_certificate(tmp_path, "second")
            shutil.copy(second, chain)
            server.process.send_signal(signal.SIGHUP)
            server.until(lambda: "is not the key of" in str(server._written()))
            assert (status(alice), status(bob), shown(server)) == (200, 401, first)
            write_keys(alice)
            shutil.copy(second_key, key)
            server.process.send_signal(signal.SIGHUP)
            server.until(lambda: shown(server) == second.read_text().strip())
            assert (status(alice), status(bob)) == (200, 401)
            data = [json.loads(line[6:]) for line in [next(lines) for _ in range(100)] if line.startswith("data: {")]
            assert not [each for each in data if "error" in each]
        code, log = server.end()
    assert code == 0
    kept = [entry["what"] for entry in log if entry["message"].startswith("not read again")]
    assert set(kept) == {"API keys", "certificate"}
    assert {entry["what"] for entry in log if entry["message"] == "read again"} == {"API keys", "certificate"}
    assert not [entry for entry in log if "traceback" in entry]
