"""`miniserve generate`: one prompt in, one or several completions out."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from miniserve.cli.loading import (
    AfdOption,
    AfdTraceOption,
    BackendOption,
    DeviceOption,
    DtypeOption,
    ExpertLoadsOption,
    ExpertParallelOption,
    KVCacheDtypeOption,
    KVCompressOption,
    KVDiskKeyOption,
    KVDiskMibOption,
    KVDiskOption,
    KVHostOption,
    ModelOption,
    QuantizationOption,
    RedundantExpertsOption,
    RequireSignedOption,
    SpeculationOption,
    TensorParallelOption,
    ThreadsOption,
    open_llm,
)
from miniserve.core.grammar import JsonSchema, Regex
from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError


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
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    quantization: QuantizationOption = "auto",
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    kv_host_mib: KVHostOption = None,
    kv_disk: KVDiskOption = None,
    kv_disk_mib: KVDiskMibOption = None,
    kv_disk_key_file: KVDiskKeyOption = None,
    kv_compress: KVCompressOption = "none",
    speculation: SpeculationOption = None,
    threads: ThreadsOption = None,
    tensor_parallel_size: TensorParallelOption = 1,
    expert_parallel: ExpertParallelOption = False,
    redundant_experts: RedundantExpertsOption = 0,
    expert_loads: ExpertLoadsOption = None,
    afd: AfdOption = None,
    afd_trace: AfdTraceOption = None,
    require_signed: RequireSignedOption = None,
) -> None:
    """Continue a text."""
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
    how = {"dtype": dtype, "device": device, "backend": backend, "quantization": quantization, "threads": threads}
    options = {
        "speculation": speculation,
        "tensor_parallel_size": tensor_parallel_size,
        "expert_parallel": expert_parallel,
        "redundant_experts": redundant_experts,
        "expert_loads": expert_loads,
        "afd": afd,
        "afd_trace": afd_trace,
        "require_signed": require_signed,
    }
    tiers = {
        "kv_host_mib": kv_host_mib,
        "kv_disk_dir": kv_disk,
        "kv_disk_mib": kv_disk_mib,
        "kv_disk_key_file": kv_disk_key_file,
        "kv_compress": kv_compress,
    }
    with open_llm(model, how, kv_cache_dtype=kv_cache_dtype, **options, **tiers) as llm:
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


def _schema(path: Path) -> JsonSchema:
    try:
        return JsonSchema(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"--json-schema {path}: {error}") from error
