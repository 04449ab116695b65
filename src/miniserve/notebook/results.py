"""Where numbers come from: results recorded in `results/`, and measurements made on the page.

Every number is one of four kinds, never mixed without a label: *measured* on this page, *recorded* earlier on a named
device, *simulated*, or *claimed* by a vendor. A recorded file is JSON with `label`, `device`, `date`, `command` and
`data` (for a claim, `source`, an address, in place of `command`); `versions` and `note` may be added. Files are checked
when they are read: a missing field is an error that names it. Nothing here writes files.
"""

import datetime
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from miniserve.errors import CorruptFileError, InvalidRequestError
from miniserve.hardware.this_machine import these_versions, this_device

Label = Literal["measured", "recorded", "simulated", "claimed"]
MEANING: Mapping[str, str] = {
    "measured": "measured on this page",
    "recorded": "recorded earlier, read from results/",
    "simulated": "computed by a model of the hardware",
    "claimed": "stated by a vendor, not checked by us",
}


@dataclass(frozen=True)
class Measurement:
    """Numbers with their provenance. `m["key"]` reads `data`. `date` is ISO, `YYYY-MM-DD`.

    Example:
        >>> from miniserve.notebook import Measurement
        >>> here = Measurement.here("Decode on this machine", {"tokens_per_s": 17.0})
        >>> here["tokens_per_s"], here.label
        (17.0, 'measured')
    """

    name: str
    label: Label
    device: str
    date: str
    data: Mapping[str, Any] = field(repr=False)
    command: str = ""
    source: str = ""
    versions: Mapping[str, str] = field(default_factory=dict, repr=False)
    note: str = ""
    path: Path | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Hold the four labels and the date's form."""
        if self.label not in get_args(Label):
            raise InvalidRequestError(f"{self.name}: label {self.label!r} is none of {', '.join(get_args(Label))}")
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            raise InvalidRequestError(f"{self.name}: date {self.date!r} is not YYYY-MM-DD") from None

    def __getitem__(self, key: str) -> Any:
        if key not in self.data:
            raise InvalidRequestError(f"{self.name} has no {key!r}; it has {', '.join(sorted(self.data))}")
        return self.data[key]

    @property
    def provenance(self) -> str:
        """One line for a caption, e.g. `recorded on NVIDIA H100 80GB HBM3, 2026-11-20`."""
        where = {"claimed": "claimed for", "simulated": "simulated:"}.get(self.label, f"{self.label} on")
        return f"{where} {self.device}, {self.date}"

    def __str__(self) -> str:
        return f"{self.name}: {self.provenance}"

    def _repr_html_(self) -> str:
        return status_box(self)._repr_html_()

    @classmethod
    def here(cls, name: str, data: Mapping[str, Any], *, note: str = "", device: str | None = None) -> "Measurement":
        """A measurement made by this process, now: device, versions and date are filled in."""
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        return cls(name, "measured", device or this_device(), today, data, "this page", "", these_versions(), note)


def results_folder(root: Path | None = None) -> Path:
    """`root`, or the repository's `results/` above this directory. Raises InvalidRequestError where there is none."""
    if root is not None:
        return root
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / "results").is_dir() and (folder / "_config.yml").is_file():
                return folder / "results"
    raise InvalidRequestError(
        "no results/ folder above this directory: run from a clone of the repository, or give root="
    )


def load_results(name: str, root: Path | None = None) -> Measurement:
    """Read `results/<name>.json`; `root` is the folder to look in, when it is not the repository's `results/`.

    Raises `InvalidRequestError` for a name that is not there (it lists those that are), and `CorruptFileError` for a
    file that is not JSON or lacks a field.
    """
    folder = results_folder(root)
    path = folder / f"{name}.json"
    if not path.is_file():
        there = (
            ", ".join(sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.json")))
            or "nothing"
        )
        raise InvalidRequestError(f"no results named {name!r} in {folder}; there is: {there}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFileError(f"{path}: not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise CorruptFileError(f"{path}: expected an object with label, device, date, command, data")
    needed = ["label", "device", "date", "data", "source" if raw.get("label") == "claimed" else "command"]
    missing = [key for key in needed if not raw.get(key)]
    if missing:
        raise CorruptFileError(f"{path}: missing {', '.join(missing)}")
    if raw["label"] == "measured":
        raise CorruptFileError(f'{path}: label "measured" is for numbers made on the page; a file is "recorded"')
    text = {key: str(raw.get(key, "")) for key in ("device", "date", "command", "source", "note")}
    try:
        return Measurement(name, raw["label"], data=raw["data"], versions=raw.get("versions", {}), path=path, **text)
    except InvalidRequestError as error:
        raise CorruptFileError(f"{path}: {error}") from None


class StatusBox:
    """A table that says of each result what kind it is and where it comes from."""

    def __init__(self, measurements: tuple[Measurement, ...]) -> None:
        """Keep the rows in the order given."""
        self.measurements = measurements

    def __repr__(self) -> str:
        return "\n".join(str(m) for m in self.measurements)

    def _repr_html_(self) -> str:
        rows = []
        for m in self.measurements:
            versions = ", ".join(f"{k} {v}" for k, v in m.versions.items())
            how = f'<a href="{html.escape(m.source)}">source</a>' if m.source.startswith("https://") else ""
            how = how or (f"<code>{html.escape(m.command)}</code>" if m.command and m.label != "measured" else "")
            cells = [
                html.escape(m.name + (f" ({m.note})" if m.note else "")),
                f'<span class="ms-label ms-{m.label}" title="{MEANING[m.label]}">{m.label}</span>',
                html.escape(m.device),
                html.escape(m.date),
                " · ".join(part for part in (how, html.escape(versions)) if part),
            ]
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        head = "".join(f'<th scope="col">{h}</th>' for h in ("What", "Kind", "Device", "Date", "How"))
        table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
        return f'<div style="overflow-x:auto"><table class="ms-status table">{table}</table></div>'


def status_box(*measurements: Measurement) -> StatusBox:
    """The chapter's status box: end a cell with `status_box(a, b, ...)`.

    Example:
        >>> from miniserve.notebook import Measurement, status_box
        >>> box = status_box(Measurement.here("Decode on this machine", {"tokens_per_s": 17.0}))
        >>> "measured" in box._repr_html_()
        True
    """
    if not measurements:
        raise InvalidRequestError("status_box needs at least one Measurement")
    return StatusBox(measurements)
