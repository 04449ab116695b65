"""What miniserve costs before it computes anything: to install, to import, to start, to load; and what a page weighs.

    python benchmarks/costs.py                                # all of it: some minutes, and torch is fetched once
    python benchmarks/costs.py --parts starts,loads --rounds 9
    python benchmarks/costs.py --parts pages --site _build/html

Each time is of a process of its own, in turn (A B C A B C …), the median of the rounds. `wall_s` is by the clock;
`cpu_s` is what the process and its children computed, which other work on the machine changes less; each part has the
machine's load average before it and after. Installations are done once each, into an environment that has torch;
packages come from wherever pip is set up to look, whose speed is in `wall_s`. An extra's bytes are of the files that it
adds to the engine's own.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from miniserve.bench.record import write_record
from miniserve.bench.serving.own_server import own_server

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results" / "costs.json"
MODELS = ("smollm2", "tiny-moe")
EXTRAS = ("serve", "structured", "bench", "notebook", "traces", "signing", "encryption")
STARTS = {
    "python": ("-c", "pass"),
    "import miniserve": ("-c", "import miniserve"),
    "from miniserve import LLM": ("-c", "from miniserve import LLM"),
    "import torch": ("-c", "import torch"),
    "miniserve --help": ("-m", "miniserve", "--help"),
    "miniserve plan --help": ("-m", "miniserve", "plan", "--help"),
}
LOAD = """\
import sys, time
from miniserve import LLM
began, cpu = time.perf_counter(), time.process_time()
with LLM(sys.argv[1]):
    print(time.perf_counter() - began, time.process_time() - cpu)
"""


def timed(command: Sequence[object], cwd: Path | None = None) -> dict[str, float]:
    """Run a command to its end.

    Returns:
        wall_s, and cpu_s: user and system time of the process and of children that it waited for.

    Raises:
        RuntimeError: it failed; has the end of what it said.
    """
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen([str(word) for word in command], stdout=said, stderr=said, cwd=cwd)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(map(str, command))}: {said.read()[-1000:].strip()}")
    return {"wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime}


def medians(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}


def starts(rounds: int) -> dict[str, dict[str, float]]:
    """Python, imports and the command's help, from nothing to the end of the process."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in STARTS}
    for _ in range(rounds):
        for name, words in STARTS.items():
            samples[name].append(timed((sys.executable, *words)))
    return {name: medians(each) for name, each in samples.items()}


def forget(directory: Path) -> None:
    """Drop the files below `directory` from the page cache, as far as the system lets go of them (Linux)."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def files_of(model: str) -> Path:
    """The folder of a model's files."""
    from miniserve.model.sources.resolve import resolve

    path = resolve(model).path
    return path if path.is_dir() else path.parent


def loads(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """`LLM(name)` in a process that has imported it: files in the page cache, and read from the disk."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for model in MODELS:
        samples: dict[str, list[dict[str, float]]] = {"warm": [], "cold": []}
        for _ in range(rounds):
            for state, each in samples.items():
                if state == "cold":
                    forget(files_of(model))
                done = subprocess.run([sys.executable, "-c", LOAD, model], capture_output=True, text=True, check=True)
                wall_s, cpu_s = map(float, done.stdout.split())
                each.append({"wall_s": wall_s, "cpu_s": cpu_s})
        found[model] = {state: medians(each) for state, each in samples.items()}
    return found


def serves(rounds: int) -> dict[str, dict[str, float]]:
    """`miniserve serve MODEL` until it is ready; then the first token of a first request, and of the same one again."""
    import httpx

    def first_token_s(url: str) -> float:
        body = {"model": httpx.get(f"{url}/models").json()["data"][0]["id"], "prompt": "The capital of France is"}
        began = time.perf_counter()
        with httpx.stream("POST", f"{url}/completions", json={**body, "stream": True}, timeout=60) as reply:
            next(line for line in reply.iter_lines() if line.startswith("data:"))
            return time.perf_counter() - began

    found = {}
    for model in MODELS:
        samples = []
        for _ in range(rounds):
            began = time.perf_counter()
            with own_server(model) as url:
                ready_s = time.perf_counter() - began
                first_s, second_s = first_token_s(url), first_token_s(url)
            samples.append({"ready_s": ready_s, "first_ttft_s": first_s, "second_ttft_s": second_s})
        found[model] = medians(samples)
    return found


def size(directory: Path) -> int:
    """Bytes of all files below it."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


def requirements(extra: str | None, project: dict[str, Any]) -> list[str]:
    """What an extra asks for (None: the package itself), with what other extras it names ask for."""
    asked = project["optional-dependencies"][extra] if extra else project["dependencies"]
    found = []
    for each in asked:
        if each.startswith("miniserve["):
            others = each.removeprefix("miniserve[").removesuffix("]").split(",")
            found += [line for other in others for line in requirements(other.strip(), project)]
        else:
            found.append(each)
    return found


def installs() -> dict[str, Any]:
    """A wheel; torch, what the engine needs, and each extra on top of both: seconds, and bytes of files added."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tempfile.TemporaryDirectory(prefix="costs-") as temporary:
        folder = Path(temporary)
        timed((sys.executable, "-m", "venv", folder / "venv"))
        pip = (folder / "venv" / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet")
        pins = ("--constraint", ROOT / "requirements.txt")
        before = size(folder / "venv")
        found: dict[str, Any] = {"wheel": timed((*pip, "wheel", "--no-deps", "--wheel-dir", folder / "wheel", ROOT))}
        found["wheel"]["bytes"] = size(folder / "wheel")
        (wheel,) = (folder / "wheel").iterdir()
        (torch,) = (line for line in requirements(None, project) if line.startswith("torch"))
        for name, wanted in (("torch", torch), ("miniserve, where torch is", str(wheel))):
            found[name] = timed((*pip, "install", *pins, wanted))
            after = size(folder / "venv")
            found[name]["bytes"], before = after - before, after
        for extra in EXTRAS:
            added = folder / extra
            found[f"[{extra}]"] = timed((*pip, "install", *pins, "--prefix", added, *requirements(extra, project)))
            found[f"[{extra}]"]["bytes"] = size(added) if added.is_dir() else 0
    return found


def pages(site: Path) -> dict[str, Any]:
    """Bytes of the built book's pages, and of all that it consists of."""
    weights = {path.relative_to(site).as_posix(): path.stat().st_size for path in site.rglob("*.html")}
    if not weights:
        raise typer.BadParameter(f"no pages in {site}: run make book-html", param_hint="--site")
    heaviest = max(weights, key=weights.__getitem__)
    return {
        "pages": len(weights),
        "median_bytes": statistics.median(weights.values()),
        "heaviest": heaviest,
        "heaviest_bytes": weights[heaviest],
        "site_bytes": size(site),
    }


def main(
    parts: Annotated[str, typer.Option(help="Which, with commas.")] = "starts,loads,serves,installs,pages",
    rounds: Annotated[int, typer.Option(min=1, help="Of starts; loads and servers take a third.")] = 9,
    site: Annotated[Path, typer.Option(help="The built book.")] = ROOT / "_build" / "html",
    out: Annotated[Path, typer.Option(help="Where the result goes.")] = RESULT,
) -> None:
    """Measure, print, and write the result."""
    few = -(-rounds // 3)
    measure = {
        "starts": lambda: starts(rounds),
        "loads": lambda: loads(few),
        "serves": lambda: serves(few),
        "installs": installs,
        "pages": lambda: pages(site),
    }
    names = parts.split(",")
    if unknown := [name for name in names if name not in measure]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(measure)}", param_hint="--parts")
    data: dict[str, Any] = {"rounds": rounds}
    for name in names:
        before = os.getloadavg()[0]
        data[name] = measure[name]() | {"load_average": [before, os.getloadavg()[0]]}
        print(name, data[name], flush=True)
    write_record(out, data, f"python benchmarks/costs.py --parts {parts} --rounds {rounds}", "cpu")


if __name__ == "__main__":
    typer.run(main)
