"""The hardware catalogue that ships with the package: the numbers of `catalog.toml`, which are nowhere else."""

from functools import cache
from pathlib import Path

from miniserve.hardware.catalog_file import read_catalog
from miniserve.hardware.devices import Catalog


@cache
def load_catalog() -> Catalog:
    """The catalogue. Raises CorruptFileError, naming the entry, if it is not sound.

    Example:
        >>> from miniserve.hardware.catalog import load_catalog
        >>> h100 = load_catalog().accelerator("h100")
        >>> h100.name, h100.memory_bytes, h100.bandwidth
        ('NVIDIA H100 SXM5 80 GB', 80000000000.0, 3350000000000.0)
        >>> memory = h100.figure("memory_bytes")
        >>> memory.value, memory.unit, memory.letter, memory.source.publisher
        (80000000000.0, 'B', 'V', 'NVIDIA')
    """
    return read_catalog(Path(__file__).with_name("catalog.toml"))
