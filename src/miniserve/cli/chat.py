"""`miniserve chat`: a conversation in the terminal.

The conversation so far is sent whole each turn. A turn that fails (too long, interrupted before its first word) is
taken out again, so that the session always goes on from a state the model has seen.
"""

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from miniserve.cli.engine_options import LLMOptions
from miniserve.cli.loading import ModelOption
from miniserve.cli.option_tables import with_tables
from miniserve.errors import InvalidRequestError

if TYPE_CHECKING:
    from miniserve.core.sampling_params import SamplingParams
    from miniserve.llm import LLM
    from miniserve.outputs import RequestOutput

HELP = "/reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops a reply."


@with_tables(engine=LLMOptions)
def chat(
    model: ModelOption = "smollm2",
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens a reply; default: what the context holds.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    *,
    engine: LLMOptions,
) -> None:
    """Talk to a model."""
    from miniserve.core.sampling_params import SamplingParams

    with contextlib.suppress(ImportError):  # absent on Windows
        import readline  # noqa: F401, gives input() editing keys and a history
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    llm = engine.open(model)
    typer.echo(f"{llm.settings}. {HELP}", err=True)
    opening = [{"role": "system", "content": system}] if system is not None else []
    messages = list(opening)
    while (line := _ask()) is not None:
        if line in ("/exit", "/quit"):
            return
        if line == "/reset":
            messages = list(opening)
            typer.echo("(forgotten)", err=True)
        elif line == "/help":
            typer.echo(HELP, err=True)
        elif line.startswith("/"):
            typer.echo(f"error: unknown command {line.split()[0]}. {HELP}", err=True)
        elif line:
            _turn(llm, messages, line, params)


def _turn(llm: "LLM", messages: list[dict[str, str]], line: str, params: "SamplingParams") -> None:
    """One question and its reply, both added to `messages` if there was a reply."""
    asked = [*messages, {"role": "user", "content": line}]
    try:
        reply = llm.stream(llm.tokenizer.encode_chat(asked), params)
    except InvalidRequestError as error:
        typer.echo(f"error: {error}. /reset makes room.", err=True)
        return
    try:
        for piece in reply:
            typer.echo(piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        reply.close()
        typer.echo(" (stopped)", err=True, nl=False)
    typer.echo("")
    output = reply.output
    _report(output)
    if output.text:
        messages[:] = [*asked, {"role": "assistant", "content": output.text}]


def _report(output: "RequestOutput") -> None:
    timings = output.timings
    if timings.ttft_s is None:
        return
    typer.secho(
        f"[{len(output.token_ids)} tokens, first after {timings.ttft_s:.2f} s, {timings.tokens_per_s:.0f} tokens/s]",
        err=True,
        dim=True,
    )


def _ask() -> str | None:
    """The next line, stripped; None at the end of input. Ctrl-C at the prompt asks again on a new line."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except KeyboardInterrupt:
            typer.echo("", err=True)
        except EOFError:
            return None
