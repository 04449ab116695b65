"""`miniserve generate`: one prompt in, one or several completions out."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from miniserve.cli.engine_options import LLMOptions, TierOptions
from miniserve.cli.loading import ModelOption
from miniserve.cli.option_tables import with_tables
from miniserve.errors import InvalidRequestError

if TYPE_CHECKING:
    from miniserve.core.grammar import JsonSchema


@with_tables(engine=LLMOptions, tiers=TierOptions)
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    model: ModelOption = "smollm2",
    chat: Annotated[
        bool, typer.Option("--chat", help="Send the prompt as a user's message, not as bare text.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Draw from tokens of this share of the likeliest one's.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: repeat less; 1 is off.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Taken off tokens that have appeared.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="Taken off for each time they have.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    n: Annotated[int, typer.Option("-n", help="How many outputs.")] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the text; may be given again.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the model's end token.")] = False,
    logprobs: Annotated[int | None, typer.Option(help="Report so many likeliest tokens (with --json).")] = None,
    json_schema: Annotated[Path | None, typer.Option(help="A file; the output is JSON of this schema.")] = None,
    regex: Annotated[str | None, typer.Option(help="The output is a match of it.")] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print text as it is made.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with ids and timings.")] = False,
    *,
    engine: LLMOptions,
    tiers: TierOptions,
) -> None:
    """Continue a text."""
    from miniserve.core.grammar import Regex
    from miniserve.core.sampling_params import SamplingParams

    if stream and (as_json or n > 1):
        raise InvalidRequestError("--stream excludes --json and -n: it prints one text as it is made")
    if json_schema and regex:
        raise InvalidRequestError("--json-schema excludes --regex: an output has one grammar")
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        n=n,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
        logprobs=logprobs,
        grammar=_schema(json_schema) if json_schema else Regex(regex) if regex else None,
    )
    if prompt == "-":
        prompt = sys.stdin.read()
    with engine.open(model, **tiers.tiers()) as llm:
        tokenizer = llm.tokenizer
        prompt_ids = tokenizer.encode_chat([{"role": "user", "content": prompt}]) if chat else tokenizer.encode(prompt)
        if stream:
            for piece in llm.stream(prompt_ids, params):
                typer.echo(piece, nl=False)
                sys.stdout.flush()
            typer.echo("")
            return
        (output,) = llm.generate([prompt_ids], params)
    if as_json:
        typer.echo(json.dumps(output.as_dict(), ensure_ascii=False))
        return
    for completion in output.outputs:
        if n > 1:
            typer.secho(f"[{completion.index}]", err=True, dim=True)
        typer.echo(completion.text)


def _schema(path: Path) -> "JsonSchema":
    from miniserve.core.grammar import JsonSchema

    try:
        return JsonSchema(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"--json-schema {path}: {error}") from error
