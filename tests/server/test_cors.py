"""Which other sites' pages may use the server from a browser: none, unless the operator says so."""

import pytest

from miniserve.cli import app

ASK = {"origin": "https://app.example", "access-control-request-method": "POST"}


def test_off_by_default_and_on_for_one_origin(start):
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    with start() as server:
        assert server.http.options("/v1/completions", headers=ASK).status_code == 405
        reply = server.http.post("/v1/completions", json=body, headers={"origin": "https://app.example"})
        assert not [name for name in reply.headers if name.startswith("access-control")]
    with start("--allow-origin", "https://app.example", MINISERVE_API_KEY="k" * 32) as server:
        asked = server.http.options("/v1/completions", headers=ASK)  # a browser sends no key with it
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "https://app.example")
        assert server.http.options("/v1/completions", headers=ASK | {"origin": "https://b.example"}).status_code == 400
        refused = server.http.post("/v1/completions", json=body, headers={"origin": "https://app.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example"  # so that the page can read it
        assert "x-request-id" in refused.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "ftp://a", "https://a b"])
def test_what_is_no_origin_is_refused(origin):
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["serve", "--allow-origin", origin])
    assert result.exit_code != 0
    assert origin in str(result.exception)
