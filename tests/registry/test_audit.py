"""The audit log: what is found out, and at which line."""

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.errors import AuditError, InvalidRequestError, MiniserveError
from miniserve.registry import audit
from miniserve.registry.audit import BEGINNING, AuditLog

WRITERS, EACH, TIMEOUT_S = 2, 25, 60


@pytest.fixture
def log(tmp_path):
    """Four records."""
    log = AuditLog(tmp_path / "audit.jsonl")
    for number in range(4):
        log.append("ada", "model.promote", version=f"qwen@{number}", share=number / 4)
    return log


def lines_of(log):
    return log.path.read_bytes().splitlines(keepends=True)


def test_a_record_says_who_what_and_when(tmp_path):
    east = timezone(timedelta(hours=2))
    log = AuditLog(tmp_path / "a" / "audit.jsonl", clock=lambda: datetime(2026, 11, 26, 23, 30, tzinfo=east))
    written = log.append("ada", "model.promote", who="it is a detail too", parts=(1, 2))
    assert log.read() == (written,)
    assert (written.number, written.who, written.what) == (1, "ada", "model.promote")
    assert written.when == "2026-11-26T21:30:00.000000+00:00"
    assert written.details == {"who": "it is a detail too", "parts": [1, 2]}
    assert written.previous == BEGINNING
    assert log.verify() == written.sha256
    assert log.path.stat().st_mode & 0o077 == 0


def test_an_empty_log_is_whole(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    assert log.read() == ()
    assert log.verify() == BEGINNING
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("details", [{"x": float("nan")}, {"x": object()}])
def test_what_json_cannot_hold_is_refused_and_nothing_written(tmp_path, details):
    log = AuditLog(tmp_path / "audit.jsonl")
    with pytest.raises(InvalidRequestError, match="details of 'act'"):
        log.append("ada", "act", **details)
    with pytest.raises(InvalidRequestError, match="needs both"):
        log.append("", "act")
    assert log.read() == ()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_found_at_its_line(tmp_path_factory, data):
    log = AuditLog(tmp_path_factory.mktemp("log") / "audit.jsonl")
    for number in range(3):
        log.append("ada", "act", number=number)
    content = bytearray(log.path.read_bytes())
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    line = content[: bit // 8].count(b"\n") + 1
    content[bit // 8] ^= 1 << bit % 8
    log.path.write_bytes(content)
    with pytest.raises(AuditError) as caught:
        log.verify()
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (lambda lines: lines[1:], 1, "line 1 holds record 2"),
        (lambda lines: [lines[0], *lines[2:]], 2, "line 2 holds record 3"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], 2, "line 2 holds record 3"),
        (lambda lines: [lines[0], lines[0], *lines[1:]], 2, "line 2 holds record 1"),
        (lambda lines: [*lines[:3], b"{}\n", lines[3]], 4, "line 4 was altered"),
        (lambda lines: [*lines[:3], lines[3][:-5]], 4, "line 4 is not whole"),
    ],
)
def test_the_first_wrong_line_is_named(log, change, line, says):
    log.path.write_bytes(b"".join(change(lines_of(log))))
    with pytest.raises(AuditError, match=says) as caught:
        log.verify()
    assert caught.value.line == line


def test_a_record_that_was_hashed_anew_is_named_by_the_next(log, tmp_path):
    other = AuditLog(tmp_path / "other.jsonl")
    for number in range(4):
        other.append("eve", "model.promote", version=f"evil@{number}")
    lines = lines_of(log)
    forged = json.loads(lines_of(other)[1]) | {"previous": json.loads(lines[0])["sha256"]}
    record = audit.AuditRecord(**forged)
    record = audit.AuditRecord(**(forged | {"sha256": record.hashed()}))
    log.path.write_bytes(b"".join([lines[0], record.line + b"\n", *lines[2:]]))
    with pytest.raises(AuditError, match="line 2 was replaced") as caught:
        log.verify()
    assert caught.value.line == 2


def test_a_log_that_was_cut_off_or_written_anew_is_found_out_with_a_hash_kept_elsewhere(log):
    kept = log.verify()
    log.path.write_bytes(b"".join(lines_of(log)[:3]))
    assert log.verify() != kept  # by itself the rest is whole
    with pytest.raises(AuditError, match="ends after 3 records") as caught:
        log.verify(known=kept)
    assert caught.value.line == 4
    kept = log.verify()
    log.append("ada", "act")
    assert log.verify(known=kept) != kept


@pytest.mark.parametrize("end", [b'{"number":5', b"nonsense\n"])
def test_nothing_is_added_to_a_broken_end(log, end):
    with log.path.open("ab") as file:
        file.write(end)
    before = log.path.read_bytes()
    with pytest.raises(AuditError, match="its last line"):
        log.append("ada", "act")
    assert log.path.read_bytes() == before


def test_a_full_disk_leaves_no_half_line(log, monkeypatch):
    before = log.path.read_bytes()

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit.os, "fsync", fail)
    with pytest.raises(MiniserveError, match="No space left"):
        log.append("ada", "act")
    monkeypatch.undo()
    assert log.path.read_bytes() == before
    log.append("ada", "act")
    log.verify()


def test_a_record_longer_than_a_block_can_be_followed(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("ada", "act", text="x" * 10_000)
    log.append("ada", "act")
    assert [record.number for record in log.read()] == [1, 2]
    log.verify()


def test_two_writers_make_one_chain(tmp_path):
    """Two processes, each half a second of CPU."""
    path = tmp_path / "audit.jsonl"
    code = (
        "import sys\nfrom miniserve.registry.audit import AuditLog\nlog = AuditLog(sys.argv[1])\n"
        f"for number in range({EACH}):\n    log.append(sys.argv[2], 'act', number=number)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), f"writer {n}"]) for n in range(WRITERS)]
    assert [writer.wait(TIMEOUT_S) for writer in writers] == [0] * WRITERS
    log = AuditLog(path)
    log.verify()
    records = log.read()
    for n in range(WRITERS):
        assert [r.details["number"] for r in records if r.who == f"writer {n}"] == list(range(EACH))
    assert len(records) == WRITERS * EACH
