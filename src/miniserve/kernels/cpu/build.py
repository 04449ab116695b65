"""The C++ kernels as a library: compiled once for this machine, kept in the cache, loaded through ctypes.

The sources include nothing but the language's own headers, so any g++ or clang++ builds them in a few seconds, without
ninja and without torch's headers. A library's directory is named by a hash of everything that went into it: sources,
flags, compiler, processor, torch. It is written aside and renamed into place under a lock, with its SHA-256 beside it:
a build that was interrupted leaves nothing, two processes build once, and a damaged file is built again.

It must run on the threads of the OpenMP runtime that torch has loaded: a second one would fight it for the cores. So it
is linked against that very file.

Does not do: Windows. There, and wherever a build fails, `library()` says why.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock

from miniserve.cache_dir import cache_dir

SOURCES = ("attention.cpp", "dense.cpp", "linear.cpp", "linear_4bit.cpp", "moe.cpp", "rowwise.cpp")
HEADERS = ("attention_tile.h", "grouped.h", "kernels.h", "linear.h", "linear_4bit.h", "linear_weights.h", "simd.h")
_COMPILE_SECONDS = 600
_ERROR_LINES = 12


class BuildError(Exception):
    """There is no library on this machine, and this is why."""


@functools.cache
def library() -> ctypes.CDLL | str:
    """The loaded library; where there is none, the reason in a sentence. Compiles at the first call on a machine."""
    try:
        return _load()
    except BuildError as error:
        return str(error)


def _load() -> ctypes.CDLL:
    if os.name != "posix":
        raise BuildError(f"the C++ kernels are not built on {platform.system()}")
    compiler, runtime = _find_compiler(), _openmp_runtime()
    directory = cache_dir() / "kernels" / _key(compiler, runtime)
    if not _is_whole(directory):
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(directory.with_suffix(".lock")):
                if not _is_whole(directory):  # unless another process has built it meanwhile
                    _build(directory, compiler, runtime)
        except OSError as error:
            raise BuildError(
                f"the C++ kernels cannot be kept in {directory.parent} ({error.strerror or error}): "
                "make it writable, or set MINISERVE_CACHE to another directory"
            ) from error
    try:
        return ctypes.CDLL(str(directory / "kernels.so"))
    except OSError as error:
        raise BuildError(f"the C++ kernels do not load: {error}") from error


def _find_compiler() -> list[str]:
    """The command that compiles C++: CXX, else g++, c++ or clang++, whichever is found first."""
    named = os.environ.get("CXX")
    for candidate in [named] if named else ["g++", "c++", "clang++"]:
        command = shlex.split(candidate)
        if command and (found := shutil.which(command[0])):
            return [found, *command[1:]]
    raise BuildError(
        f"the C++ kernels need a compiler, and CXX names {named!r}, which is not found"
        if named
        else "the C++ kernels need a compiler, and none is on the PATH (g++, c++ or clang++; CXX may name one)"
    )


def _openmp_runtime() -> str | None:
    """The OpenMP library that torch has loaded into this process."""
    if sys.platform == "darwin":
        found = Path(torch.__file__).parent / "lib" / "libomp.dylib"
        return str(found) if found.is_file() else None
    with suppress(OSError):
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"\s(/\S*/lib(?:gomp|iomp5|omp)[^/\s]*\.so\S*)", maps):
            return match[1]
    return None


def _flags() -> list[str]:
    native = "-march=native" if platform.machine() in {"x86_64", "i686"} else "-mcpu=native"
    openmp = ["-Xpreprocessor", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
    return ["-std=c++17", "-O3", native, "-fPIC", "-fno-math-errno", "-fvisibility=hidden", *openmp]


def _key(compiler: list[str], runtime: str | None) -> str:
    """Names a build. A compiler is known by its file's size and time: asking it for its version would take longer."""
    digest = hashlib.sha256()
    for name in SOURCES + HEADERS:
        digest.update(Path(__file__).with_name(name).read_bytes())
    binary = Path(compiler[0]).resolve().stat()
    parts = [*compiler, binary.st_size, binary.st_mtime_ns, *_flags(), runtime, torch.__version__, _processor()]
    digest.update("\0".join(map(str, parts)).encode())
    return digest.hexdigest()[:32]


def _processor() -> str:
    """What `native` depends on."""
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        # The first processor's lines alone: on a large machine the whole file takes long.
        lines = file.read(16384).partition("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU")))
    return platform.processor() or platform.machine()


def _is_whole(directory: Path) -> bool:
    """Whether the library is there and has the SHA-256 that was recorded when it was built."""
    with suppress(OSError):
        recorded = (directory / "kernels.sha256").read_text(encoding="ascii", errors="replace")
        return hashlib.sha256((directory / "kernels.so").read_bytes()).hexdigest() == recorded
    return False


def _build(directory: Path, compiler: list[str], runtime: str | None) -> None:
    """Compile each source to an object, all at once; link; move the whole directory into place."""
    for stale in directory.parent.glob(f"{directory.name}.building-*"):  # of a build that was killed: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f"{directory.name}.building-") as scratch:
        objects = [Path(scratch) / f"{name}.o" for name in SOURCES]
        _run(
            [*compiler, *_flags(), "-c", str(Path(__file__).with_name(name)), "-o", str(to)]
            for name, to in zip(SOURCES, objects, strict=True)
        )
        finished = Path(scratch) / "finished"
        finished.mkdir()
        built = finished / "kernels.so"
        # Without -fopenmp, which would bring the compiler's own runtime.
        openmp = [runtime] if runtime else ["-fopenmp"]
        _run([[*compiler, "-shared", *map(str, objects), *openmp, "-o", str(built)]])
        digest = hashlib.sha256(built.read_bytes()).hexdigest()
        (finished / "kernels.sha256").write_text(digest, encoding="ascii")
        shutil.rmtree(directory, ignore_errors=True)  # what a damaged build left
        finished.rename(directory)


def _run(commands: Iterable[list[str]]) -> None:
    """Run compilers side by side. Raises with what the first failing one said."""
    started = []
    try:
        for command in commands:
            started.append(
                (command, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
            )
        for command, process in started:
            said, _ = process.communicate(timeout=_COMPILE_SECONDS)
            if process.returncode:
                tail = "\n  ".join(said.strip().splitlines()[:_ERROR_LINES]) or "nothing"
                raise BuildError(
                    f"the C++ kernels do not compile: {command[0]} ended with status {process.returncode} and said:\n"
                    f"  {tail}"
                )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"the C++ kernels do not compile: {error.cmd[0]} took over {_COMPILE_SECONDS} s") from error
    finally:
        for _, process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
