"""`AuditLog`: who did what, and when, in a file to which lines are added and none is changed.

A line is a record as canonical JSON: its number, the time (UTC), who, what, details, the SHA-256 of the record before
(`previous`; 64 zeros for the first) and its own (`sha256`, over all the rest). So a line that is altered, removed, put
elsewhere or added in between breaks the chain at a place that `verify` names. A record is on the disk when `append`
returns; writers in several processes take turns.

What a chain cannot show: that records were cut off at the end, or that somebody who may write the file has written all
of it anew, hashes too. Both need a hash that is kept elsewhere: `append` and `verify` return the newest, and `verify`
takes one that must be in the chain. Nor can it show that what a record says is true: `who` is what the caller said.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from miniserve.errors import AuditError, InvalidRequestError, MiniserveError
from miniserve.registry.files import canonical_json, sync_directory

BEGINNING = "0" * 64  # the hash before the first record
LOCK_S = 30
_BLOCK_BYTES = 4096


@dataclass(frozen=True)
class AuditRecord:
    """One line. `number` counts from 1; `when` is ISO 8601 in UTC; hashes are in hexadecimal."""

    number: int
    when: str
    who: str
    what: str
    details: Mapping[str, Any]
    previous: str
    sha256: str

    @property
    def line(self) -> bytes:
        """As it stands in the file, without the end of line."""
        return canonical_json(asdict(self))

    def hashed(self) -> str:
        """The SHA-256 of all but `sha256`."""
        fields = asdict(self)
        del fields["sha256"]
        return hashlib.sha256(canonical_json(fields)).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC)


class AuditLog:
    """The log in the file at `path`, which is made with the first record, for its owner's eyes only.

    Args:
        path: the file; beside it `path.lock` keeps writers apart.
        clock: gives the time, with its zone.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from miniserve.registry.audit import AuditLog
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "audit.jsonl")
        ...     log = AuditLog(file)
        ...     _ = log.append("alice", "model.promote", version="shop@2")
        ...     newest = log.append("bob", "model.rollback")
        ...     assert log.verify() == newest.sha256
        ...     _ = file.write_text(file.read_text().replace("alice", "mallory"))
        ...     log.verify()
        Traceback (most recent call last):
            ...
        miniserve.errors.AuditError: ...audit.jsonl: line 1 was altered: its SHA-256 is another than it says
    """

    def __init__(self, path: Path | str, *, clock: Callable[[], datetime] = _now) -> None:
        self.path = Path(path)
        self._clock = clock

    def append(self, who: str, what: str, /, **details: Any) -> AuditRecord:
        """Add a record; it is on the disk when this returns.

        Args:
            who: the person or the part that acted.
            what: the act, such as "model.promote".
            details: anything that JSON holds.

        Raises:
            InvalidRequestError: `who` or `what` is empty, or JSON cannot hold the details.
            AuditError: the log's last line is not whole or not a record: nothing is added to it.
            MiniserveError: the file cannot be written, or another writer does not let go of it.
        """
        if not who or not what:
            raise InvalidRequestError(f"an audit record needs both who ({who!r}) and what ({what!r})")
        try:
            details = json.loads(canonical_json(details))  # as it will be read: tuples are lists, keys are texts
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"details of {what!r} for the audit log: {error}") from error
        with self._locked():
            last = self._last()
            number, previous = (last.number + 1, last.sha256) if last else (1, BEGINNING)
            when = self._clock().astimezone(UTC).isoformat(timespec="microseconds")
            unhashed = AuditRecord(number, when, who, what, details, previous, "")
            record = AuditRecord(**(asdict(unhashed) | {"sha256": unhashed.hashed()}))
            self._write(record.line + b"\n")
        return record

    def read(self) -> tuple[AuditRecord, ...]:
        """All records, oldest first, without a look at the chain. Raises AuditError for a line that is no record."""
        return tuple(_parse(self.path, number, line) for number, line in enumerate(self._lines(), 1))

    def verify(self, *, known: str | None = None) -> str:
        """Check the whole chain; returns its newest hash, to be kept elsewhere, or BEGINNING.

        Args:
            known: a record's hash that was kept elsewhere. It must be in the chain, or the end was cut off, or all of
                it written anew.

        Raises:
            AuditError: names the first line that was altered, removed or moved, in `line` too.
        """
        previous, seen, number = BEGINNING, known in {None, BEGINNING}, 0
        for number, line in enumerate(self._lines(), 1):
            record = _parse(self.path, number, line)
            if record.hashed() != record.sha256 or record.line != line:
                raise AuditError(f"{self.path}: line {number} was altered: its SHA-256 is another than it says", number)
            if record.number != number:
                raise AuditError(
                    f"{self.path}: line {number} holds record {record.number}: lines were removed, added or moved here",
                    number,
                )
            if record.previous != previous:
                wrong = max(number - 1, 1)
                raise AuditError(
                    f"{self.path}: line {wrong} was replaced: line {number} follows a record with another SHA-256",
                    wrong,
                )
            previous = record.sha256
            seen = seen or previous == known
        if not seen:
            raise AuditError(
                f"{self.path}: ends after {number} records without the one with SHA-256 {known}: the end was cut off, "
                "or the log was written anew",
                number + 1,
            )
        return previous

    def _lines(self) -> Iterator[bytes]:
        if not self.path.exists():
            return
        with self._locked():  # a record that is just being written is there whole, or not at all
            lines = self.path.read_bytes().split(b"\n")
        torn = lines.pop()
        yield from lines
        if torn:
            raise self._torn(len(lines) + 1)

    def _last(self) -> AuditRecord | None:
        """The last record, from the end of the file: an append costs the same however long the log is."""
        try:
            with self.path.open("rb") as file:
                start, tail = file.seek(0, os.SEEK_END), b""
                while start and tail.count(b"\n") < 2:
                    length = min(_BLOCK_BYTES, start)
                    start -= length
                    file.seek(start)
                    tail = file.read(length) + tail
        except FileNotFoundError:
            return None
        if not tail:
            return None
        *lines, torn = tail.split(b"\n")
        if torn:
            raise self._torn(None)
        record = _parse(self.path, None, lines[-1])
        if record.hashed() != record.sha256:
            raise AuditError(f"{self.path}: its last line was altered: nothing is added to it", record.number)
        return record

    def _torn(self, number: int | None) -> AuditError:
        return AuditError(
            f"{self.path}: {_place(number)} is not whole: its writing was interrupted, and nobody was told that it "
            "succeeded. Cut it off",
            number or 0,
        )

    def _write(self, line: bytes) -> None:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                before = os.fstat(descriptor).st_size
                try:
                    rest = memoryview(line)
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, before)  # half a line would keep everybody from going on
                    raise
            finally:
                os.close(descriptor)
            if not before:
                sync_directory(self.path.parent)
        except OSError as error:
            raise MiniserveError(f"audit log {self.path} cannot be written: {error.strerror or error}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{self.path}.lock")
            lock.acquire(timeout=LOCK_S)
        except Timeout as error:
            raise MiniserveError(f"audit log {self.path}: another process has held it for {LOCK_S} s") from error
        except OSError as error:
            raise MiniserveError(f"audit log {self.path} cannot be locked: {error.strerror or error}") from error
        try:
            yield
        finally:
            lock.release()


def _parse(path: Path, number: int | None, line: bytes) -> AuditRecord:
    """`number`: of the line; None: it is the last."""
    try:
        record = AuditRecord(**json.loads(line))
        kinds = [type(value) for value in vars(record).values()]
    except (ValueError, TypeError):
        kinds = []
    if kinds != [int, str, str, str, dict, str, str]:
        raise AuditError(f"{path}: {_place(number)} was altered: it is not an audit record", number or 0)
    return record


def _place(number: int | None) -> str:
    return "its last line" if number is None else f"line {number}"
