"""`miniserve generate`: one prompt in, one completion out."""

import json
import sys
from typing import Annotated

import typer

from miniserve.cli.loading import DeviceOption, DtypeOption, ModelOption, load
from miniserve.errors import InvalidRequestError


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    model: ModelOption = "smollm2",
    chat: Annotated[
        bool, typer.Option("--chat", help="Send the prompt as a user's message, not as bare text.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print text as it is made.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with ids and timings.")] = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
) -> None:
    """Continue a text."""
    if stream and as_json:
        raise InvalidRequestError("--stream and --json exclude each other: --json prints one object at the end")
    if prompt == "-":
        prompt = sys.stdin.read()
    loaded = load(model, dtype, device)
    from miniserve.model.completion import Completion

    tokenizer = loaded.tokenizer
    prompt_ids = tokenizer.encode_chat([{"role": "user", "content": prompt}]) if chat else tokenizer.encode(prompt)
    completion = Completion(loaded, prompt_ids, max_tokens=max_tokens, temperature=temperature, seed=seed)
    interrupted = False
    try:
        for piece in completion:
            if stream:
                typer.echo(piece, nl=False)
                sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
    if as_json:
        typer.echo(json.dumps(completion.as_dict(), ensure_ascii=False))
    else:
        typer.echo("" if stream else completion.text)
    if interrupted:
        raise typer.Exit(130)
