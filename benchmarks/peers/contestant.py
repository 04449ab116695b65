"""One peer with one set of options in a comparison: its process, its tuning, its runs and, if it failed, why."""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.catalogue import Spec
from peers.environments import SetupError, environment, without_paths
from peers.models import Models
from peers.process import PeerError, PeerProcess

Jobs = Sequence[tuple[list[int], int]]
TUNING_GAIN = 0.97  # a setting is taken if it needs at most this share of the best time so far


@dataclass(frozen=True)
class Surroundings:
    """What all contestants share: where environments and files are kept, the models, the threads, the patience."""

    folder: Path
    models: Models
    threads: int
    timeout_s: float


@dataclass
class Contestant:
    """See the module. `error` is None as long as nothing has failed; what was measured before that stays."""

    name: str
    spec: Spec
    options: dict[str, Any]
    startup_s: float | None = None
    about: dict[str, Any] = field(default_factory=dict)
    tuning: list[dict[str, Any]] = field(default_factory=list)
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    error: str | None = None
    process: PeerProcess | None = None

    @property
    def label(self) -> str:
        """Its name and options, e.g. `llama.cpp weights=Q8_0`."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])

    def start(self, around: Surroundings) -> None:
        """Set it up and load its model; on failure `error` says why."""
        try:
            self._start(around)
        except (SetupError, PeerError, OSError) as error:
            self._fail(str(error))

    def tune(self, jobs: Jobs, say: Callable[[str], None]) -> None:
        """Try what the peer says can be tried, one setting after the other, and keep what is faster."""
        if self.error or not self.about["choices"]:
            return
        best_s = self._timed({}, jobs, say)
        for name, values in self.about["choices"].items():
            for value in values:
                if self.error is None and best_s is not None and value != self.about["settings"][name]:
                    before = {name: self.about["settings"][name]}
                    seconds = self._timed({name: value}, jobs, say)
                    if seconds is not None and seconds < best_s * TUNING_GAIN:
                        best_s = seconds
                    else:
                        self._configure(before)

    def run(self, workload: str, jobs: Jobs) -> dict[str, Any] | None:
        """Run a workload once and keep what it took; None if it failed, now or before."""
        if self.error or self.process is None:
            return None
        try:
            answer = self._ask_run(jobs)
        except PeerError as error:
            self._fail(f"{workload}: {error}")
            return None
        self.runs.setdefault(workload, []).append(answer)
        return answer

    def end(self) -> None:
        """End its process."""
        if self.process is not None:
            self.process.end()

    def _start(self, around: Surroundings) -> None:
        folder = around.folder
        log = folder / "logs" / f"{self.label.replace('/', '_')[:100]}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        python = sys.executable
        if self.spec.requirements:
            python = environment(self.name, folder, self.spec.requirements, self.spec.unwanted, log)
        options = dict(self.options)
        options["model"] = around.models.path(self.spec.reads, options.get("weights", "file"))
        if "weights" in options:
            self.options["weights"] = around.models.format(options["weights"])
        self._launch = options | {"threads": around.threads, "cache": str(folder / "compiled")}
        if self.spec.reads == "name":
            del self._launch["cache"]
        variables = {
            "OMP_NUM_THREADS": str(around.threads),
            "MKL_NUM_THREADS": str(around.threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "DO_NOT_TRACK": "1",
        }
        self.process = PeerProcess([python, str(self.spec.script)], variables, log, around.timeout_s)
        self.about, self.startup_s = self.process.start(self._launch)
        self.about["settings"].pop("model", None)

    def _timed(self, settings: dict[str, Any], jobs: Jobs, say: Callable[[str], None]) -> float | None:
        """The seconds that the jobs take with these settings; None, and the settings as before, if they do not work."""
        try:
            self._configure(settings)
            seconds = float(self._ask_run(jobs)["seconds"])
        except PeerError as error:
            self.tuning.append({"settings": settings, "error": str(error)})
            say(f"tuning {self.label}: {settings} does not work: {error}")
            self._revive()
            return None
        self.tuning.append({"settings": dict(self.about["settings"]), "seconds": seconds})
        say(f"tuning {self.label}: {settings or 'as it comes'} {seconds:.2f} s")
        return seconds

    def _configure(self, settings: dict[str, Any]) -> None:
        assert self.process is not None
        if settings and self.error is None:
            self.about["settings"] = self.process.ask({"configure": settings})["configured"]

    def _revive(self) -> None:
        """Start it again with the settings that worked last."""
        assert self.process is not None
        self.process.end()
        settings = {key: value for key, value in self.about["settings"].items() if key in self.about["choices"]}
        try:
            self.process.start(self._launch)
            self._configure(settings)
        except PeerError as error:
            self._fail(str(error))

    def _ask_run(self, jobs: Jobs) -> dict[str, Any]:
        assert self.process is not None
        answer = self.process.ask({"run": jobs})
        expected = sum(max_tokens for _, max_tokens in jobs)
        if answer["output_tokens"] != expected:
            raise PeerError(f"gave {answer['output_tokens']} tokens where {expected} were asked for")
        return answer

    def _fail(self, why: str) -> None:
        self.error = without_paths(why)
        self.end()


def speeds(contestant: Contestant, workload: str, tokens: int) -> list[float]:
    """Tokens a second of each run."""
    return [tokens / run["seconds"] for run in contestant.runs.get(workload, [])]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def agreement(first_ids: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """The share of the reference's first tokens that come before the first difference; the mean over requests."""
    shares = []
    for ids, expected in zip(first_ids, reference, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=True)) if a != b), len(expected))
        shares.append(same / len(expected))
    return statistics.fmean(shares)


def summary(contestant: Contestant, tokens: Mapping[str, int], ours: Contestant | None) -> dict[str, Any]:
    """What a result file keeps of a contestant. Ratios are to `ours`, round by round, and their median.

    Args:
        contestant: whose.
        tokens: of each workload, the tokens that its speed counts.
        ours: what ratios and agreement refer to; None: there is nothing to refer to.
    """
    about = contestant.about
    kept: dict[str, Any] = {
        "peer": contestant.name,
        "options": contestant.options,
        "versions": about.get("versions", {}),
        "settings": about.get("settings", {}),
        "notes": about.get("notes", {}),
        "startup_s": contestant.startup_s,
        "workloads": {},
    }
    if contestant.error:
        kept["error"] = contestant.error
        kept["requirements"] = list(contestant.spec.requirements)
    if contestant.tuning:
        kept["tuning"] = contestant.tuning
    for workload, runs in contestant.runs.items():
        own = speeds(contestant, workload, tokens[workload])
        entry: dict[str, Any] = {"seconds": [run["seconds"] for run in runs], "tokens_per_s": spread(own)}
        if all(run["ttft_s"] is not None for run in runs):
            entry["ttft_s"] = spread([run["ttft_s"] for run in runs])
        if ours is not None and (reference := ours.runs.get(workload)):
            theirs = speeds(ours, workload, tokens[workload])
            entry["ratio_to_ours"] = statistics.median(a / b for a, b in zip(own, theirs, strict=False))
            entry["agreement_first_32"] = agreement(runs[0]["first_ids"], reference[0]["first_ids"])
        kept["workloads"][workload] = entry
    return kept
