"""A rollout through the admin API: load a version, try it as a canary, then promote it or take it back.

    miniserve models register shop ./new-weights --licence Apache-2.0 --card card.md
    miniserve serve --models registry:shop --admin-keys-file admins.toml --slo ttft:500,itl:100 --kv-cache-mib 1024
    ADMIN=KEY python examples/rollout.py http://127.0.0.1:8000 2

It is promoted if the objective of `--slo` holds for enough of the requests that it gets. One that the server's smoke
evaluation does not pass gets none: the first order is refused, which ends this and says why.
"""

from os import environ
from sys import argv
from time import sleep

import httpx

SHARE, ENOUGH, OBJECTIVE, PATIENCE_S = 0.2, 20, 0.95, 600


def seen(http: httpx.Client, version: str) -> list[float]:
    """Of a version, since the server started: requests that say something of the objective, and those that met it."""
    mine = [line.split() for line in http.get("/metrics").text.splitlines() if f'version="{version}"' in line]
    names = ("miniserve:slo_requests_total{", "miniserve:slo_good_total{")
    return [sum(float(words[-1]) for words in mine if words[0].startswith(name)) for name in names]


def check(reply: httpx.Response) -> None:
    if reply.is_error:
        raise SystemExit(reply.read().decode())


def main(url: str, version: str) -> None:
    headers, hooks = {"authorization": f"Bearer {environ['ADMIN']}"}, {"response": [check]}
    with httpx.Client(base_url=url, headers=headers, event_hooks=hooks, timeout=600) as http:
        http.post(f"/admin/versions/{version}/load")
        before = seen(http, version)
        http.put("/admin/traffic", json={"canary": version, "weight": SHARE})
        for _ in range(PATIENCE_S):
            sleep(1)
            tried, good = (now - then for now, then in zip(seen(http, version), before, strict=True))
            if tried >= ENOUGH:
                break
        fits = tried >= ENOUGH and good >= OBJECTIVE * tried
        http.post("/admin/promote", json={"version": version}) if fits else http.post("/admin/rollback")
        print(f"version {version}: {good:.0f} of {tried:.0f} met the objective: {'promoted' if fits else 'taken back'}")


if __name__ == "__main__":
    main(*argv[1:])
