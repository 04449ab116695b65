"""`TierOptions`: what is asked of KV tiers, in the terms of `LLM`'s arguments; `open_tiers` makes them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from miniserve._version import __version__
from miniserve.core.loading import Seconds
from miniserve.errors import InvalidRequestError
from miniserve.kvstore.blocks import BlockCopier
from miniserve.kvstore.connector import TieredKV
from miniserve.kvstore.disk import DiskTier
from miniserve.kvstore.host import HostTier
from miniserve.kvstore.layout import KVLayout
from miniserve.kvstore.packing import PACKINGS, choose_packing
from miniserve.kvstore.worker import Tier
from miniserve.runtime.kv_cache import KVCache

if TYPE_CHECKING:
    from miniserve.kvstore.encryption import MasterKey

DISK_MIB = 10 * 1024  # where a directory is given and no size
LOADS = ("faster", "always")


@dataclass(frozen=True)
class TierOptions:
    """Where KV may go, decided.

    Attributes:
        host_mib: of host memory; None: none.
        disk_dir, disk_mib: of which directory; None: no disk.
        compress: how blocks are stored: "none" or "fp8".
        load: "faster": what is found is loaded if that is faster than to compute it; "always".
        disk_key: what the directory's files are encrypted with; None: they are not.
    """

    host_mib: int | None = None
    disk_dir: Path | None = None
    disk_mib: int = DISK_MIB
    compress: str = "none"
    load: str = "faster"
    disk_key: "MasterKey | None" = None

    @classmethod
    def of(
        cls,
        *,
        kv_host_mib: int | None = None,
        kv_disk_dir: str | Path | None = None,
        kv_disk_mib: int | None = None,
        kv_disk_key_file: str | Path | None = None,
        kv_compress: str = "none",
        kv_load: str = "faster",
    ) -> "TierOptions | None":
        """From `LLM`'s arguments; None if no tier is asked for.

        Raises:
            InvalidRequestError: one is out of range, asks for something of a tier that there is not, or the file has no
                key that is kept as a key should be.
            MiniserveError: there is a key, and the package `cryptography` is not installed.
        """
        for name, mib in (("kv_host_mib", kv_host_mib), ("kv_disk_mib", kv_disk_mib)):
            if mib is not None and mib < 1:
                raise InvalidRequestError(f"{name} is {mib}: it must be at least 1")
        if kv_compress not in PACKINGS:
            raise InvalidRequestError(f"kv_compress {kv_compress!r} is not one of {', '.join(PACKINGS)}")
        if kv_load not in LOADS:
            raise InvalidRequestError(f"kv_load {kv_load!r} is not one of {', '.join(LOADS)}")
        if kv_disk_dir is None and kv_disk_mib is not None:
            raise InvalidRequestError(f"kv_disk_mib is {kv_disk_mib}, but there is no kv_disk_dir")
        if kv_disk_dir is None and kv_disk_key_file is not None:
            raise InvalidRequestError(f"kv_disk_key_file is {kv_disk_key_file}, but there is no kv_disk_dir")
        if kv_host_mib is None and kv_disk_dir is None:
            if kv_compress != "none" or kv_load != "faster":
                raise InvalidRequestError("kv_compress and kv_load are of tiers: give kv_host_mib or kv_disk_dir")
            return None
        folder = None if kv_disk_dir is None else Path(kv_disk_dir).expanduser().absolute()
        disk_mib = DISK_MIB if kv_disk_mib is None else kv_disk_mib
        disk_key = None if kv_disk_key_file is None else _read_key(Path(kv_disk_key_file).expanduser())
        return cls(kv_host_mib, folder, disk_mib, kv_compress, kv_load, disk_key)

    def __str__(self) -> str:
        host = [f"{self.host_mib} MiB of host memory"] if self.host_mib else []
        encrypted = ", encrypted" if self.disk_key else ""
        disk = [f"{self.disk_mib} MiB in {self.disk_dir}{encrypted}"] if self.disk_dir else []
        return " and ".join(host + disk) + (f" as {self.compress}" if self.compress != "none" else "")


def _read_key(path: Path) -> "MasterKey":
    from miniserve.kvstore.encryption import MasterKey

    return MasterKey.read(path)


def open_tiers(options: TierOptions, cache: KVCache, layout: KVLayout, recompute_s: Seconds) -> TieredKV:
    """The tiers beside a KV cache.

    Args:
        options: which.
        cache: the device's KV.
        layout: its form.
        recompute_s: how long tokens take to compute.

    Raises:
        InvalidRequestError: a tier is too small for one block, a directory cannot be used, or what is to be compressed
            has 8 bits already.
    """
    packing = choose_packing(options.compress, layout)
    identity = packing.stored.digest
    if options.disk_key:
        identity = options.disk_key.derived(identity)
    tiers: list[Tier] = []
    if options.host_mib:
        tiers.append(HostTier(options.host_mib * 2**20, packing.stored.block_bytes))
    if options.disk_dir:
        # What another version of this program computed is not trusted: it may have been a bug.
        domain = hashlib.sha256(packing.stored.digest + __version__.encode()).digest()
        capacity = options.disk_mib * 2**20
        tiers.append(DiskTier(options.disk_dir, capacity, packing.stored.block_bytes, domain, options.disk_key))
    return TieredKV(
        BlockCopier(cache, layout),
        packing,
        tiers,
        identity=identity.hex(),
        num_blocks=len(cache.keys[0]),
        recompute_s=recompute_s if options.load == "faster" else None,
    )
