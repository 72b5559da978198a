"""codeseg's installed metadata -> its requirements by extra. Light."""

from importlib.metadata import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def read_requirements() -> dict[str, list[Requirement]]:
    """Return the requirements for this Python by extra: "" (always needed) first, without dev.

    Raises:
        PackageNotFoundError: codeseg is not installed.
    """
    installed = metadata("codeseg")
    groups: dict[str, list[Requirement]] = {"": []}
    groups |= {name: [] for name in installed.get_all("Provides-Extra") or [] if name != "dev"}
    for line in map(Requirement, installed.get_all("Requires-Dist") or []):
        for extra, group in groups.items():
            if line.marker is None or line.marker.evaluate({"extra": extra}):
                group.append(line)
                break
    return groups


def extra_of(module: str) -> str | None:
    """Return the extra that installs a module; None if none does, as for a user's own module."""
    name = canonicalize_name(module.partition(".")[0])
    for extra, group in read_requirements().items():
        if extra and any(canonicalize_name(line.name) == name for line in group):
            return extra
    return None
