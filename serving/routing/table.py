"""The route table: which adapter version answers for which name. Pure and immutable.

A request pins the table it was admitted with; a swap is one new table with a higher revision.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..engine.protocol import VersionRef
from ..errors import NotFoundError

Track = Literal["stable", "canary", "pinned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Versions behind one adapter name."""

    adapter: str
    stable: str
    """Version id."""
    canary: str | None = None
    canary_weight: float = 0.0
    """Share of requests for the canary, between 0 and 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where one request goes."""

    base_id: str
    adapter: str | None
    version: VersionRef | None
    track: Track
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTable:
    """One revision of all routes."""

    revision: int
    current_base: str
    serving_bases: tuple[str, ...]
    """Bases with a running engine."""
    routes: Mapping[str, Route] = field(default_factory=dict)
    versions: Mapping[str, VersionRef] = field(default_factory=dict)
    """Every version that may be asked for, by id."""
    versions_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Version ids of each adapter, oldest first."""

    def resolve(self, model: str, rng: random.Random) -> Target:
        """Resolves `adapter`, `adapter@base`, `adapter@version` or a base id.

        Raises:
            NotFoundError: unknown name, or a version whose base no engine serves.
        """
        name, _, selector = model.partition("@")
        if selector:
            return self._resolve_pinned(name, selector)
        route = self.routes.get(name)
        if route is not None:
            canary = route.canary is not None and rng.random() < route.canary_weight
            version_id = route.canary if canary and route.canary else route.stable
            return self._target(name, version_id, "canary" if canary else "stable")
        if name in self.serving_bases:
            return Target(
                base_id=name, adapter=None, version=None, track="pinned", revision=self.revision
            )
        raise NotFoundError(
            f"unknown model {model!r}: expected an adapter name, adapter@base, adapter@version or "
            f"a served base ({', '.join(self.serving_bases)}); ListModels shows all names",
            reason="MODEL_NOT_FOUND",
        )

    def _resolve_pinned(self, name: str, selector: str) -> Target:
        candidates = self.versions_of.get(name, ())
        if not candidates:
            raise NotFoundError(f"unknown adapter {name!r}", reason="MODEL_NOT_FOUND")
        if selector in candidates:
            return self._target(name, selector, "pinned")
        # Newest version for that base.
        for version_id in reversed(candidates):
            if self.versions[version_id].base_id == selector:
                return self._target(name, version_id, "pinned")
        raise NotFoundError(
            f"adapter {name!r} has no version {selector!r} and none for a base of that name; it "
            f"has {', '.join(f'{v} ({self.versions[v].base_id})' for v in candidates)}",
            reason="VERSION_NOT_FOUND",
        )

    def _target(self, adapter: str, version_id: str, track: Track) -> Target:
        version = self.versions[version_id]
        if version.base_id not in self.serving_bases:
            raise NotFoundError(
                f"version {version_id} of {adapter!r} needs base {version.base_id!r}, which no "
                f"engine serves now (served: {', '.join(self.serving_bases)})",
                reason="BASE_NOT_SERVED",
            )
        return Target(
            base_id=version.base_id,
            adapter=adapter,
            version=version,
            track=track,
            revision=self.revision,
        )
