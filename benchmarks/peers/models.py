"""The model of a comparison in every form that a peer asks for, made once from what ours reads, and kept."""

import collections
import functools
import subprocess
import sys
from pathlib import Path

import gguf
from peers.environments import SetupError, reason_in

from miniserve.model.gguf import GGUFFile

EXPORT = Path(__file__).with_name("export.py")


class Models:
    """One model in every form that a peer asks for. What has to be made is made once and kept.

    Args:
        name: as miniserve takes it.
        found: the file or directory behind it.
        folder: where what is made is kept.
    """

    def __init__(self, name: str, found: Path, folder: Path) -> None:
        self._name, self._found = name, found
        self._folder = folder / f"{found.stem}-{found.stat().st_size}"

    def path(self, reads: str, weights: str) -> str:
        """What a peer that `reads` "name", "directory" or "gguf" is given; `weights` is a number format or "file".

        Raises:
            SetupError: this model cannot be had in that form.
        """
        if reads == "name":
            return self._name
        if self._found.is_dir():
            if reads == "gguf":
                raise SetupError("reads GGUF files, and the model is a directory")
            return str(self._found)
        if reads == "gguf" and self.format(weights) == self.format("file"):
            return str(self._found)
        kind = "safetensors" if reads == "directory" else weights
        target = self._folder / (kind if reads == "directory" else f"{kind}.gguf")
        done = self._folder / f"{kind}.done"
        if not done.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            log = self._folder / f"{kind}.log"
            with log.open("w", encoding="utf-8") as output:
                # Elsewhere, so that the benchmark's own process stays small.
                command = [sys.executable, str(EXPORT), str(self._found), kind, str(target)]
                if subprocess.call(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL):
                    raise SetupError(f"the model could not be written as {kind}: {reason_in(log)}")
            done.touch()
        return str(target)

    def format(self, weights: str) -> str:
        """The number format that `weights` names; "file" is what most matrices of the file have."""
        if weights != "file" or self._found.is_dir():
            return weights
        return self._format_of_file

    @functools.cached_property
    def _format_of_file(self) -> str:
        tensors = GGUFFile(self._found).tensors.values()
        kinds = collections.Counter(tensor.type_id for tensor in tensors if len(tensor.shape) > 1)
        return str(gguf.GGMLQuantizationType(kinds.most_common(1)[0][0]).name)
