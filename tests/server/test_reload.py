"""What is read again, and when."""

from miniserve.errors import InvalidRequestError
from miniserve.server.reload import Reloads, Source


def test_changes_are_seen_and_errors_are_logged(tmp_path, caplog):
    read, path = [], tmp_path / "keys"
    path.write_text("a")

    def keys():
        if not path.exists() or path.read_text() == "bad":
            raise InvalidRequestError("bad keys")
        read.append(path.read_text())

    reloads = Reloads([Source("keys", keys, path), Source("certificate", lambda: read.append("pair"))])
    reloads.look()
    assert read == []
    path.write_text("bc")
    reloads.look()
    reloads.look()
    assert read == ["bc"]
    for change in (lambda: path.write_text("bad"), path.unlink):
        change()
        reloads.look()
        reloads.look()
    assert read == ["bc"]
    assert [each.reason for each in caplog.records if each.levelname == "ERROR"] == ["bad keys"] * 2
    path.write_text("d")
    reloads.read_all()
    reloads.look()
    assert read == ["bc", "d", "pair"]
