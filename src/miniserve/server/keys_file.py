"""A file of API keys: TOML, a table a tenant, with its key's SHA-256 and its limits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miniserve.errors import InvalidRequestError
from miniserve.server.access import Tenant
from miniserve.tables import from_table, read_toml


@dataclass(frozen=True)
class _Key:
    """A table; see `Tenant`."""

    sha256: str
    max_concurrent: int | None = None
    requests_per_minute: int | None = None
    watch: bool = False


def read_keys(path: Path) -> list[Tenant]:
    """Read one.

    Raises:
        CorruptFileError: it cannot be read, or is no TOML; names the file.
        InvalidRequestError: it says something else; names the file and the tenant.
    """
    tables = read_toml(path)
    if not tables:
        raise InvalidRequestError(f"{path} has no keys: it needs a table for each, such as [alice]")
    tenants = [_tenant(path, name, table) for name, table in tables.items()]
    names: dict[str, str] = {}
    for tenant in tenants:
        if (other := names.setdefault(tenant.sha256, tenant.name)) != tenant.name:
            raise InvalidRequestError(f"{path}: [{other}] and [{tenant.name}] have one key: each needs its own")
    return tenants


def _tenant(path: Path, name: str, table: Any) -> Tenant:
    where = f"{path}, [{name}]"
    if not isinstance(table, dict):
        raise InvalidRequestError(f"{where} is no table")
    try:
        key = from_table(_Key, table)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{where}: {error}") from error
    if len(key.sha256) != 64 or set(key.sha256) - set("0123456789abcdef"):
        raise InvalidRequestError(f"{where}: sha256 must be 64 hexadecimal digits")
    limits = {"max_concurrent": key.max_concurrent, "requests_per_minute": key.requests_per_minute}
    for what, limit in limits.items():
        if limit is not None and limit < 1:
            raise InvalidRequestError(f"{where}: {what} is {limit}: it must be at least 1")
    return Tenant(name, key.sha256, key.max_concurrent, key.requests_per_minute, key.watch)
