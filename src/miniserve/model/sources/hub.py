"""Models of the Hugging Face Hub: `org/name` to a snapshot in the Hub client's own cache.

The repository's list of files is judged before anything is fetched, and only what a decoder and a tokenizer are read
from is fetched; pickles cannot match. When the Hub does not answer, a whole snapshot in the cache serves, and one line
on stderr says so. Torch-free; the Hub's client is imported when it is needed.
"""

import sys
from pathlib import Path
from typing import Any, NoReturn

from miniserve.errors import DownloadError, MiniserveError, ModelNotFoundError, UnsafeWeightsError
from miniserve.model.sources.files import ModelFiles, model_directory
from miniserve.registry.accepted import PICKLES, WHY_NO_PICKLES

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.tiktoken", "vocab.txt", "merges.txt"]


def from_hub(name: str, progress: bool, offline: bool) -> ModelFiles:
    """The snapshot of `name`'s main revision: brought up to date if the Hub answers, else as the cache has it."""
    import huggingface_hub as hub

    source = f"Hugging Face Hub repository {name}"
    options: dict[str, Any] = {} if progress and sys.stderr.isatty() else {"tqdm_class": _silent_bars()}
    failure: Exception | None = None
    if not offline:
        try:
            siblings = hub.HfApi().model_info(name).siblings or []
            _refuse_unusable(name, [s.rfilename for s in siblings])
            path = hub.snapshot_download(name, allow_patterns=PATTERNS, **options)
            return model_directory(name, Path(path), source)
        except MiniserveError:
            raise
        # The client's transport errors have no common class across its major versions: whatever it raises is the
        # Hub's or the network's doing, and becomes one of ours unless the cache can serve.
        except Exception as error:
            failure = error
    try:
        path = hub.snapshot_download(name, allow_patterns=PATTERNS, local_files_only=True, **options)
        files = model_directory(name, Path(path), source)
    except (OSError, ValueError, MiniserveError) as error:
        _raise_not_cached(name, failure, error)
    if failure and progress:
        print(
            f"the Hub could not be asked about {name} ({_first_line(failure)}): using the cached copy", file=sys.stderr
        )
    return files


def hub_cache_dir() -> Path:
    """Where the Hub's client keeps snapshots: HF_HUB_CACHE, else below HF_HOME, by its own rules."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def _refuse_unusable(name: str, files: list[str]) -> None:
    """Judge a repository by its file list, before a byte of it is downloaded."""
    top = [f for f in files if "/" not in f]
    if "config.json" in top and any(f.endswith(".safetensors") for f in top):
        return
    if any(f.endswith(".safetensors") for f in top):
        raise ModelNotFoundError(f"Hub repository {name} has safetensors but no config.json")
    if ggufs := [f for f in files if f.endswith(".gguf")]:
        raise ModelNotFoundError(
            f"Hub repository {name} holds GGUF files: download the one you want and give it by its path "
            f"(`hf download {name} {ggufs[0]}`)"
        )
    if pickles := [f for f in files if f.endswith(PICKLES)]:
        raise UnsafeWeightsError(
            f"Hub repository {name}: the only weights are pickles ({', '.join(pickles[:3])}): {WHY_NO_PICKLES}"
        )
    raise ModelNotFoundError(f"Hub repository {name} has no config.json with safetensors weights at its top level")


def _raise_not_cached(name: str, failure: Exception | None, error: Exception) -> NoReturn:
    """Neither fetched (`failure`; None when offline) nor whole in the cache (`error`)."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    where = f"the cache in {hub_cache_dir()} holds no whole copy"
    if isinstance(error, UnsafeWeightsError):
        raise error
    if failure is None:
        raise ModelNotFoundError(
            f"offline mode is on and {where} of {name}. With a network, run `miniserve models pull {name}` "
            f"(config.json, tokenizer and *.safetensors of the Hub repository {name})"
        ) from error
    if isinstance(failure, GatedRepoError):  # before its base class, the next one
        raise DownloadError(
            f"Hub repository {name} is gated: accept its terms on its page, then log in (`hf auth login`, or HF_TOKEN)"
        ) from failure
    if isinstance(failure, RepositoryNotFoundError):
        raise ModelNotFoundError(
            f"no repository {name} on the Hugging Face Hub, or it is private: check the name, or log in "
            "(`hf auth login`, or HF_TOKEN)"
        ) from failure
    raise DownloadError(
        f"could not fetch {name} from the Hugging Face Hub ({_first_line(failure)}), and {where}. "
        f"Trying again is safe; needed: config.json, tokenizer and *.safetensors of that repository"
    ) from failure


def _first_line(error: Exception) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text.strip()}" if text else type(error).__name__


def _silent_bars() -> type:
    """The Hub client's progress bar, switched off: for one call, not for the process."""
    from huggingface_hub.utils.tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))  # type: ignore[no-untyped-call]

    return Silent
