"""A file that is no TOML is refused by its name. How tables become dataclasses: `simulate/test_scenario.py`."""

import pytest

from miniserve.errors import CorruptFileError
from miniserve.tables import read_toml


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"model = \n", r"x\.toml cannot be read as TOML: .*line 1"),
        (b"model = '\xff'", r"x\.toml cannot be read as TOML: 'utf-8' codec"),
        (None, r"x\.toml: No such file or directory"),
    ],
)
def test_a_file_that_is_none(tmp_path, content, told):
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=told):
        read_toml(path)
