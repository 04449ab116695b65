"""Which version of a model answers: a file `stable` beside the versions, so that a server that starts again knows.

The newest version is the last that was registered; the stable one is the last that was promoted. They differ whenever
a version has not been tried yet, or has been taken back.

No signature covers this file. Whoever may write it can have a server start with any version that is there; where
signatures are required, with any signed one, an older one too. It is as safe as the registry's directory is.
"""

from miniserve.errors import MiniserveError
from miniserve.registry.files import write_whole
from miniserve.registry.store import Registry
from miniserve.registry.version import Version

FILE = "stable"


def stable_of(registry: Registry, name: str) -> Version | None:
    """The version of a model that was promoted last; None: none ever was.

    Raises:
        ModelNotFoundError: there is no such model, or the version is gone.
    """
    versions = registry.versions(name)
    path = registry.root / name / FILE
    if not path.exists():
        return None
    return registry.find(f"{versions[0].name}@{path.read_text().strip()}")


def set_stable(registry: Registry, name: str, version: str) -> None:
    """Have that version be the stable one.

    Raises:
        ModelNotFoundError: there is none.
        MiniserveError: it cannot be written down.
    """
    found = registry.find(f"{name}@{version}")
    try:
        write_whole(registry.root / name / FILE, f"{found.version}\n".encode())
    except OSError as error:
        raise MiniserveError(f"{name}: the stable version cannot be recorded in {registry.root}: {error}") from error
