"""What codeseg needs of other packages, by extra: pyproject.toml or installed metadata in. Light.

read_requirements() -> {"": what everything needs, "pipeline": …, "coco": …, …}
shortfalls(those)   -> {requirement: what is wrong with what is installed}
"""

import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from packaging.requirements import Requirement

SOURCE = Path(__file__).resolve().parents[2] / "pyproject.toml"
BASE = ""  # the name of what is needed without any extra
DEVELOPMENT = "dev"


def read_requirements(pyproject: Path = SOURCE) -> dict[str, list[Requirement]]:
    """Requirements that apply to this Python, by extra, the base first and development left out.

    A source tree's own file goes first: the metadata of an editable installation may be older.

    Args:
        pyproject: of the source tree, where there is one.

    Raises:
        ValueError: neither a source tree nor an installed codeseg.
    """
    groups = _from_source(pyproject) or _from_metadata()
    groups.pop(DEVELOPMENT, None)
    return groups


def shortfalls(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Hold requirements against what is installed, without importing any of it.

    Returns:
        What pip would be asked for -> "not installed" or the version that is; empty when all fit.
    """
    short = {}
    for requirement in requirements:
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        wanted = f"{requirement.name}{extras}{requirement.specifier}"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            short[wanted] = "not installed"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            short[wanted] = f"{found} is installed"
    return short


def _from_source(pyproject: Path) -> dict[str, list[Requirement]]:
    """From a source tree's file; {} when it is not there or another project's."""
    if not pyproject.is_file():
        return {}
    project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
    if project.get("name") != "codeseg":
        return {}
    lines = {BASE: project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: [r for r in map(Requirement, group) if _applies(r, BASE)]
        for extra, group in lines.items()
    }


def _from_metadata() -> dict[str, list[Requirement]]:
    """From the installed package, which marks a requirement with its extra."""
    try:
        installed = metadata("codeseg")
    except PackageNotFoundError:
        raise ValueError("codeseg is not installed, and this is no source tree of it") from None
    requirements = [Requirement(line) for line in installed.get_all("Requires-Dist") or []]
    groups = {BASE: [r for r in requirements if _applies(r, BASE)]}
    for extra in installed.get_all("Provides-Extra") or []:
        groups[extra] = [r for r in requirements if _applies(r, extra) and not _applies(r, BASE)]
    return groups


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})
