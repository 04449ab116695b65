"""miniserve against the strongest engines for CPUs that pip installs: same machine, same model, same tokens.

    python benchmarks/cpu_peers.py                                  # all of it; hours on a small machine
    python benchmarks/cpu_peers.py --quick                          # small counts: does everything run?
    python benchmarks/cpu_peers.py --peers ours,llama.cpp --no-tune
    python benchmarks/cpu_peers.py --ours dtype=float32 --ours dtype=bfloat16
    python benchmarks/cpu_peers.py --peers ours,vllm --variant vllm:dtype=float32,compile=false

Every peer gets the same token ids and must give the same number of tokens: greedy, end-of-sequence ignored, no prefix
cache, as many threads as there are physical cores. Each is a process of its own that loads the model once; one computes
at a time, in turn (A B C A B C …), while the others wait for a line. What a peer says can be set is tried first, one
setting after the other on a shorter workload, and the fastest is kept. A peer that fails is reported with its reason.

Peers are installed into environments of their own below --venvs, except ours and transformers, which share this one.
llama.cpp and its fork compute with 8-bit activations, and OpenVINO may, where ours keeps to float32: the agreement of
the first tokens says how far apart they end up.
"""

import ast
import contextlib
import datetime
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from peers.catalogue import PEERS, spec_of
from peers.contestant import Contestant, Surroundings, summary
from peers.cpu import instruction_sets, physical_cores
from peers.models import Models
from rich.console import Console
from rich.table import Table

from miniserve.bench.workloads import Job, mixed
from miniserve.errors import MiniserveError
from miniserve.hardware.this_machine import num_cores, these_versions, this_device
from miniserve.model.config_gguf import read_gguf_config
from miniserve.model.config_hf import read_hf_config
from miniserve.model.gguf import GGUFFile
from miniserve.model.sources.aliases import cache_dir
from miniserve.model.sources.files import ModelFiles
from miniserve.model.sources.resolve import resolve

RESULT = Path(__file__).parents[1] / "results" / "cpu_peers.json"
IDLE_SHARE = 0.05  # of a core, in which a waiting peer may not be busy
say = Console(stderr=True, highlight=False).print


def make_workloads(vocab_size: int, quick: bool) -> dict[str, list[Job]]:
    """The workloads by name. `prefill_…` is about the prompt: it has one output token."""
    few, one, long = (8, 16, 200) if quick else (64, 128, 2000)
    low, high = (16, 32) if quick else (64, 256)
    prompt = mixed(1, vocab_size, low=long, high=long)[0].prompt_token_ids
    return {
        "batch_1": mixed(1, vocab_size, low=one, high=one),
        f"batch_{few}": mixed(few, vocab_size, low=low, high=high),
        f"prefill_{long}": [Job(prompt, 1)],
    }


def counted_tokens(workload: str, jobs: Sequence[Job]) -> int:
    """The tokens that a workload's speed counts: of the prompt for `prefill_…`, else of the outputs."""
    if workload.startswith("prefill"):
        return sum(len(job.prompt_token_ids) for job in jobs)
    return sum(job.max_tokens for job in jobs)


def parse_options(text: str) -> dict[str, Any]:
    """`dtype=float32,max_num_seqs=32` as a dict; values are Python literals, else texts; true and false too."""
    options: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise typer.BadParameter(f"{part!r} is not KEY=VALUE")
        try:
            options[key.strip()] = ast.literal_eval(value.title() if value in ("true", "false") else value)
        except (ValueError, SyntaxError):
            options[key.strip()] = value
    return options


def choose(peers: str, ours: Sequence[str], variants: Sequence[str]) -> list[Contestant]:
    """Who competes: each peer's own variants, or those of the command line."""
    asked: dict[str, list[dict[str, Any]]] = {}
    for text in ours:
        asked.setdefault("ours", []).append(parse_options(text))
    for text in variants:
        name, _, options = text.partition(":")
        asked.setdefault(name, []).append(parse_options(options))
    names = [name.strip() for name in peers.split(",") if name.strip()]
    if unused := set(asked) - set(names):
        raise typer.BadParameter(f"options for {', '.join(sorted(unused))}, which --peers does not name")
    found = []
    for name in names:
        if not name.endswith(".py") and name not in PEERS:
            raise typer.BadParameter(f"no peer {name!r}: there are {', '.join(PEERS)}, or a script's path")
        spec = spec_of(name)
        shown = Path(name).stem if name.endswith(".py") else name
        found += [Contestant(shown, spec, dict(options)) for options in asked.get(name, spec.variants)]
    return found


@contextlib.contextmanager
def ended(contestants: Sequence[Contestant]) -> Iterator[None]:
    """However this is left, also by Ctrl-C or a polite kill, no peer stays behind."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        for contestant in contestants:
            contestant.end()
        signal.signal(signal.SIGTERM, before)


def compete(contestants: Sequence[Contestant], workloads: dict[str, list[Job]], repeats: int) -> float:
    """All rounds of all workloads, in turn. Returns the largest share of a core that the waiting ones took."""
    busiest = 0.0
    for workload, jobs in workloads.items():
        for number in range(repeats):
            for contestant in contestants:
                idle = [other.process for other in contestants if other is not contestant and other.process]
                before = sum(process.cpu_seconds() for process in idle)
                answer = contestant.run(workload, jobs)
                if answer is None:
                    continue
                speed = counted_tokens(workload, jobs) / answer["seconds"]
                say(f"{workload} {number + 1}/{repeats}: {contestant.label}: {speed:.1f} tokens/s")
                share = (sum(process.cpu_seconds() for process in idle) - before) / max(answer["seconds"], 1.0)
                busiest = max(busiest, share)
                if share > IDLE_SHARE:
                    say(f"[yellow]the waiting peers took {share:.0%} of a core meanwhile[/]")
    return busiest


def show(contestants: Sequence[Contestant], workloads: dict[str, list[Job]], ours: Contestant | None) -> None:
    """Print what a person wants to see: medians, least to greatest, ratios to ours; then who ran how, or why not."""
    shown = Table(title="tokens/s, of the prompt for prefill and else of the outputs; × ours")
    shown.add_column("peer")
    for name in workloads:
        shown.add_column(name.replace("_", " "), justify="right")
    shown.add_column("start-up", justify="right")
    console = Console()
    tokens = {name: counted_tokens(name, jobs) for name, jobs in workloads.items()}
    remarks = []
    for contestant in contestants:
        kept = summary(contestant, tokens, ours)
        cells = []
        for name in workloads:
            entry = kept["workloads"].get(name)
            if entry is None:
                cells.append("–")
                continue
            speed = entry["tokens_per_s"]
            ratio = f"\n{entry['ratio_to_ours']:.2f}×" if "ratio_to_ours" in entry else ""
            cells.append(f"{speed['median']:.1f} ({speed['min']:.1f}–{speed['max']:.1f}){ratio}")
        start = f"{contestant.startup_s:.1f} s" if contestant.startup_s is not None else "–"
        shown.add_row(contestant.label, *cells, start)
        described = [f"{key} {value}" for key, value in kept["versions"].items()]
        described += [f"{key}={value}" for key, value in kept["settings"].items() if key not in contestant.options]
        remarks.append((contestant.label, ", ".join(described), contestant.error))
    console.print(shown)
    for label, how, error in remarks:
        console.print(f"{label}: {how}", highlight=False, markup=False)
        if error:
            console.print(f"{label}: failed: {error}", style="red", highlight=False, markup=False)


def with_provenance(data: dict[str, Any], versions: dict[str, str]) -> dict[str, Any]:
    """The form in which `results/` keeps a measurement."""
    arguments = [a for i, a in enumerate(sys.argv[1:]) if a != "--venvs" and sys.argv[i] != "--venvs"]
    return {
        "label": "recorded",
        "device": f"{this_device()}, {num_cores()} cores",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(["python benchmarks/cpu_peers.py", *arguments]),
        "versions": these_versions() | {"miniserve": version("miniserve")} | versions,
        "data": data,
    }


def main(
    peers: Annotated[str, typer.Option(help="Names, or paths of scripts, with commas.")] = ",".join(PEERS),
    ours: Annotated[list[str] | None, typer.Option(help="LLM arguments, KEY=VALUE,…; may be repeated.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="PEER:KEY=VALUE,… in place of its own variants.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Alias, directory or .gguf file.")] = "smollm2",
    repeats: Annotated[int, typer.Option(help="Rounds.", min=1)] = 3,
    workloads: Annotated[str | None, typer.Option(help="Only these, with commas.")] = None,
    tune: Annotated[bool, typer.Option(help="Try each peer's settings first.")] = True,
    quick: Annotated[bool, typer.Option(help="Small counts, no tuning, nothing written unless --out says so.")] = False,
    threads: Annotated[int, typer.Option(help="For everyone; 0: physical cores.", min=0)] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds, for one answer of a peer.")] = 1800.0,
    venvs: Annotated[Path | None, typer.Option(help="Where peers and models are kept.")] = None,
    out: Annotated[Path | None, typer.Option(help="Result file; results/cpu_peers.json.")] = None,
) -> None:
    """Measure miniserve and its peers on this CPU."""
    folder = (venvs or cache_dir() / "peers").absolute()
    try:
        files = resolve(model)
        vocab_size = _vocab_size(files)
    except MiniserveError as error:
        say(f"[red]{error}[/]")
        raise typer.Exit(1) from None
    jobs = make_workloads(vocab_size, quick)
    if workloads:
        wanted = workloads.split(",")
        if unknown := set(wanted) - set(jobs):
            raise typer.BadParameter(f"no workload {', '.join(sorted(unknown))}: there are {', '.join(jobs)}")
        jobs = {name: each for name, each in jobs.items() if name in wanted}
    contestants = choose(peers, ours or [], variant or [])
    around = Surroundings(folder, Models(model, files.path, folder / "models"), threads or physical_cores(), timeout)
    with ended(contestants):
        for contestant in contestants:
            contestant.start(around)
            took = f"ready after {contestant.startup_s:.1f} s" if contestant.startup_s else ""
            say(f"{contestant.label}: {contestant.error or took}")
            contestant.run("warm-up", mixed(2, vocab_size, low=8, high=16))
            contestant.runs.clear()
            if tune and not quick:
                half = mixed(64, vocab_size, low=32, high=128)
                contestant.tune([Job(job.prompt_token_ids, job.max_tokens // 4) for job in half], say)
        busiest = compete(contestants, jobs, repeats)
    reference = next((each for each in contestants if each.name == "ours" and not each.error), None)
    show(contestants, jobs, reference)
    tokens = {name: counted_tokens(name, each) for name, each in jobs.items()}
    data = {
        "model": model,
        "threads": around.threads,
        "repeats": repeats,
        "instruction_sets": instruction_sets(),
        "idle_share_of_a_core": busiest,
        "workloads": {
            name: {
                "requests": len(each),
                "prompt_tokens": sum(len(job.prompt_token_ids) for job in each),
                "output_tokens": sum(job.max_tokens for job in each),
                "speed_counts": "prompt tokens" if name.startswith("prefill") else "output tokens",
            }
            for name, each in jobs.items()
        },
        "ratios_to": reference.label if reference else None,
        "peers": {each.label: summary(each, tokens, reference) for each in contestants},
    }
    target = out or (None if quick else RESULT)
    if target:
        versions = {name: value for each in contestants for name, value in each.about.get("versions", {}).items()}
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(with_provenance(data, versions), indent=2) + "\n", encoding="utf-8")
        say(f"written: {target}")
    if all(each.error for each in contestants):
        raise typer.Exit(1)


def _vocab_size(files: ModelFiles) -> int:
    if files.kind == "gguf":
        return read_gguf_config(GGUFFile(files.path)).vocab_size
    return read_hf_config(files.path / "config.json").vocab_size


if __name__ == "__main__":
    typer.run(main)
