"""What is said of a model's versions to `miniserve serve`: where they are, what they must pass, who directs them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from miniserve.errors import InvalidRequestError

if TYPE_CHECKING:
    from miniserve.server.backend import Backend
    from miniserve.server.rollout.admin import Control
    from miniserve.server.rollout.lineup import Lineup


@dataclass(frozen=True, kw_only=True)
class VersionOptions:
    """The table."""

    models: Annotated[
        str | None, typer.Option(help="registry:NAME: versions of a model, of which one is stable; instead of MODEL.")
    ] = None
    warm: Annotated[list[str] | None, typer.Option(help="A version to load at the start, besides the stable one.")] = (
        None
    )
    smoke: Annotated[Path | None, typer.Option(help="TOML: what a version must pass before it answers anybody.")] = None
    admin_keys_file: Annotated[
        Path | None, typer.Option(help="TOML, as --api-keys-file: who may direct versions, by /admin.")
    ] = None

    def lineup(self, model: str, make: "Callable[[str], Backend]", *, served_as: str | None) -> "Lineup":
        """The versions that are served: those of the registry, or a model that has none.

        The stable one is that which was promoted last, and at first the newest.

        Args:
            model: what is served without `models`.
            make: gives what computes a model, not started.
            served_as: the name that requests give; None: the model's.

        Raises:
            InvalidRequestError: the table says something that cannot be.
            ModelNotFoundError: there is no such model or version in the registry.
        """
        from miniserve.model.sources.resolve import REGISTERED
        from miniserve.registry.stable import set_stable, stable_of
        from miniserve.registry.store import Registry
        from miniserve.server.rollout.gate import ALWAYS, read_gate
        from miniserve.server.rollout.lineup import Lineup
        from miniserve.server.rollout.version import Version

        if self.models is None:
            options = {"--warm": self.warm, "--smoke": self.smoke, "--admin-keys-file": self.admin_keys_file}
            if given := [name for name, value in options.items() if value]:
                message = f"{' and '.join(given)}: for versions of a model, which --models registry:NAME serves"
                raise InvalidRequestError(message)
            return Lineup(served_as or model, [Version("", lambda: make(model))])
        if not self.models.startswith(REGISTERED) or "@" in self.models:
            message = f"models '{self.models}' is not registry:NAME: all versions of one model in the registry"
            raise InvalidRequestError(message)
        registry, name = Registry(), self.models.removeprefix(REGISTERED)
        gate = read_gate(self.smoke) if self.smoke else ALWAYS

        def version(label: str) -> Version:
            return Version(label, lambda: make(f"{REGISTERED}{name}@{label}"), gate)

        def newer(known: Sequence[str]) -> list[Version]:
            return [version(each.version) for each in registry.versions(name) if each.version not in known]

        def on_stable(label: str) -> None:
            set_stable(registry, name, label)

        stable = stable_of(registry, name) or registry.find(name)
        for label in self.warm or ():
            registry.find(f"{name}@{label}")
        on_stable(stable.version)  # what is registered later must not answer because the server was started again
        return Lineup(
            served_as or name, newer(()), stable.version, warm=self.warm or (), on_stable=on_stable, newer=newer
        )

    def control(self) -> "Control | None":
        """Who may direct versions; that is written down in the registry's audit log. None: nobody.

        Raises:
            InvalidRequestError: the file of keys says something that cannot be.
        """
        from miniserve.registry.store import Registry
        from miniserve.server.access import Access
        from miniserve.server.keys_file import read_keys
        from miniserve.server.rollout.admin import Control

        return Control(Access(read_keys(self.admin_keys_file)), Registry().audit) if self.admin_keys_file else None
