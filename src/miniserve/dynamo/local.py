"""`python -m miniserve.dynamo.local`: a whole deployment on this machine (local_deployment.py), looked after.

It is for one machine and for tests; across hosts workers are started one by one, with etcd.
Whoever ends this process, by Ctrl-C or a signal, ends all of them. A worker that ends by itself is followed by another
of its kind; a frontend that does is an error. With `--follow` there are as many workers as a planner says.
"""

import asyncio
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from miniserve.cli.loading import ModelOption
from miniserve.dynamo.answers import Role
from miniserve.dynamo.command import run
from miniserve.dynamo.local_deployment import LocalDeployment
from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.hardware.this_machine import num_cores

LOOK_S = 0.5


def local(
    model: ModelOption = "smollm2",
    agg: Annotated[int, typer.Option(help="Workers that compute whole requests.", min=0)] = 0,
    prefill: Annotated[int, typer.Option(help="Workers for prompts.", min=0)] = 0,
    decode: Annotated[int, typer.Option(help="Workers that go on behind them.", min=0)] = 0,
    port: Annotated[int, typer.Option(help="The frontend's.", min=1, max=65535)] = 8000,
    router: Annotated[Literal["kv", "round-robin", "random"], typer.Option(help="How it chooses a worker.")] = "kv",
    kv_cache_mib: Annotated[int, typer.Option(help="Memory for the KV cache, of each worker.", min=1)] = 512,
    threads: Annotated[int | None, typer.Option(help="Of each worker; default: its share of the cores.", min=1)] = None,
    directory: Annotated[Path | None, typer.Option(help="For logs; default: a new one.")] = None,
    follow: Annotated[
        str | None, typer.Option(help="A namespace: have as many workers as miniserve.dynamo.planner says there.")
    ] = None,
    options: Annotated[list[str] | None, typer.Argument(help="Behind --: options of each worker.")] = None,
) -> None:
    """Run Dynamo's frontend and workers of ours on this machine, until Ctrl-C."""
    if not agg and not (prefill and decode):
        raise InvalidRequestError("nobody would answer: --agg 1 at least, or --prefill 1 and --decode 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    where = directory or Path(tempfile.mkdtemp(prefix="miniserve-dynamo-"))
    counts: dict[Role, int] = {"agg": agg, "prefill": prefill, "decode": decode}
    share = threads or max(num_cores() // sum(counts.values()), 1)
    with LocalDeployment(
        where, model, ["--kv-cache-mib", str(kv_cache_mib), "--threads", str(share), *(options or ())]
    ) as deployment:
        deployment.start_frontend(port, router)
        for role, number in counts.items():
            for _ in range(number):
                deployment.start_worker(role)
        typer.echo(f"http://127.0.0.1:{port}/v1 once the models are loaded; logs in {where}")
        asyncio.run(_look_after(deployment, follow))


async def _look_after(deployment: LocalDeployment, namespace: str | None) -> None:
    """Until it is cancelled."""
    following = asyncio.create_task(_follow(deployment, namespace)) if namespace else None
    while True:
        await asyncio.sleep(LOOK_S)
        if following and following.done():
            following.result()  # it only ends by an error
        for name in deployment.dead():
            if name.startswith("frontend"):
                raise MiniserveError(f"the frontend has ended: see {deployment.log(name)}")
            typer.echo(f"{name} has ended: see {deployment.log(name)}; another one is started")
            deployment.start_worker(name.rpartition("-")[0])  # type: ignore[arg-type]


async def _follow(deployment: LocalDeployment, namespace: str) -> None:
    """Have as many workers for prompts, and behind them, as is published.

    That is done when the processes have been started, and those that were let go have ended.
    """
    from miniserve.dynamo.scaling import Follower, runtime

    connected = runtime()
    try:
        follower = Follower(connected, namespace)
        while True:
            counts = await follower.wanted()
            typer.echo(f"{counts.prefill} workers for prompts, {counts.decode} behind them")
            deployment.scale("prefill", counts.prefill)
            deployment.scale("decode", counts.decode)
            while not deployment.is_settled:
                await asyncio.sleep(LOOK_S)
            await follower.done()
    finally:
        connected.shutdown()


if __name__ == "__main__":
    run(local)
