"""codeseg's requirements: installed metadata in, requirements by extra out. Light."""

from importlib.metadata import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def read_requirements() -> dict[str, list[Requirement]]:
    """Return the requirements for this Python by extra: "" (needed by all) first, without dev.

    Raises:
        PackageNotFoundError: codeseg is not installed.
    """
    installed = metadata("codeseg")
    lines = map(Requirement, installed.get_all("Requires-Dist") or [])
    groups: dict[str, list[Requirement]] = {"": []}
    groups |= {name: [] for name in installed.get_all("Provides-Extra") or [] if name != "dev"}
    for line in lines:
        for extra, group in groups.items():
            if line.marker is None or line.marker.evaluate({"extra": extra}):
                group.append(line)
                break
    return groups


def extra_of(module: str) -> str | None:
    """Return the extra that brings a module; None if no extra does, as for a user's own."""
    name = canonicalize_name(module.partition(".")[0])
    for extra, group in read_requirements().items():
        if extra and any(canonicalize_name(line.name) == name for line in group):
            return extra
    return None
