"""The hardware catalogue that ships with the package: the numbers of `catalog.toml`, which are nowhere else."""

from functools import cache
from pathlib import Path

from miniserve.hardware.catalog_file import read_catalog
from miniserve.hardware.devices import Catalog


@cache
def load_catalog() -> Catalog:
    """The catalogue. Raises CorruptFileError, naming the entry, if it is not sound."""
    return read_catalog(Path(__file__).with_name("catalog.toml"))
