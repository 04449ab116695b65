"""From a model's name to files: in the registry, at a path, in this package, by an alias, or `org/name` on the Hub.

They are looked for in that order (the Hub is Hugging Face's); `registry:NAME@VERSION` is of the registry that
`registry.store.default_root` says, and `registry:NAME` its newest version.

Invariants: a name that resolves has weights in safetensors or GGUF; pickles are refused, never downloaded and never
opened; a failure says what was looked for, where, and what would be accepted. It reads no weights: whether a file is
whole is for `verify` and for the loaders. Torch is never imported, and the Hub's client only when it is needed.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from miniserve.errors import MiniserveError, ModelNotFoundError
from miniserve.model.sources.aliases import Alias, load_aliases
from miniserve.model.sources.download import fetch, is_offline
from miniserve.model.sources.embedded import Embedded, load_embedded
from miniserve.model.sources.files import ModelFiles, find_local, model_directory
from miniserve.model.sources.hub import from_hub, hub_cache_dir
from miniserve.registry.store import Registry

REGISTERED = "registry:"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def resolve(
    name: str, *, progress: bool = True, offline: bool | None = None, aliases: Mapping[str, Alias] | None = None
) -> ModelFiles:
    """Find the model called `name`, fetching it if need be.

    Args:
        name: `registry:NAME[@VERSION]`, a directory, a .gguf file, a model in this package (`tiny-moe`), an alias
            (`smollm2`), or `org/name` on the Hub. Of those without a prefix an existing path wins.
        progress: report on stderr.
        offline: never touch the network; None reads MINISERVE_OFFLINE and HF_HUB_OFFLINE.
        aliases: the alias table; None is the one that ships.

    Raises:
        ModelNotFoundError: nothing by that name, here or there.
        ManifestError: a version of the registry lies where another should.
        DownloadError: it exists but could not be fetched; trying again is safe.
        UnsafeWeightsError: its only weights are pickles.
        CorruptFileError: its safetensors index is unreadable or lists a file that is missing.
        ChecksumError: what was fetched for an alias is not the recorded file.
    """
    aliases = load_aliases() if aliases is None else aliases
    embedded = load_embedded()
    if here := _registered_or_local(name):
        return here
    if name in embedded:
        return _embedded_files(embedded[name])
    if name in aliases:
        return _alias_files(aliases[name], fetch(aliases[name], progress=progress, offline=offline))
    if _HUB_NAME.fullmatch(name):
        return from_hub(name, progress, is_offline() if offline is None else offline)
    names = sorted([*aliases, *embedded])
    close = difflib.get_close_matches(name.lower(), names, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ModelNotFoundError(
        f"no model called '{name}'.{hint} Accepted: a short name ({', '.join(names)}); the path of a directory "
        "with config.json and safetensors, or of a .gguf file; registry:NAME[@VERSION]; or org/name of a repository on "
        "the Hugging Face Hub"
    )


def cached(name: str, *, aliases: Mapping[str, Alias] | None = None) -> ModelFiles | None:
    """What `resolve` would return without a network, or None. A path that exists but is unusable raises, as there."""
    aliases = load_aliases() if aliases is None else aliases
    if here := _registered_or_local(name):
        return here
    if embedded := load_embedded().get(name):
        return _embedded_files(embedded)
    if name in aliases:
        return _alias_files(aliases[name], aliases[name].path) if aliases[name].is_cached() else None
    if not _HUB_NAME.fullmatch(name):
        return None
    try:
        return from_hub(name, progress=False, offline=True)
    except MiniserveError:  # absent, or a download that was cut short: either way not there to be used
        return None


def cached_hub_models() -> Iterator[ModelFiles]:
    """The usable snapshots in the Hub's cache on this disk, by name. Other programs' models are among them."""
    for folder in sorted(hub_cache_dir().glob("models--*--*")):
        if files := cached("/".join(folder.name.removeprefix("models--").split("--", 1))):
            yield files


def _registered_or_local(name: str) -> ModelFiles | None:
    """By `registry:NAME[@VERSION]`, whose version is then in the files' name, or by a path."""
    if not name.startswith(REGISTERED):
        return find_local(name)
    registry = Registry()
    version = registry.find(name.removeprefix(REGISTERED))
    return model_directory(f"{REGISTERED}{version.reference}", version.path, f"registry {registry.root}")


def _alias_files(alias: Alias, path: Path) -> ModelFiles:
    return ModelFiles(alias.name, "gguf", path, f"{alias.requirement} from the Python package index ({alias.origin})")


def _embedded_files(model: Embedded) -> ModelFiles:
    return model_directory(model.name, model.path, f"inside miniserve ({model.title})")
