"""Where child processes find our packages: a tree not installed -> PYTHONPATH. Light."""

import os
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
INSTALLED = ("site-packages", "dist-packages")


def child_path(source: Path = SOURCE) -> str:
    """PYTHONPATH for children in any working directory.

    An installed codeseg is found without it. Naming site-packages there would put it before the
    standard library, where img2dataset's `dataclasses`, a backport for Python 3.6, hides the real
    one and nothing starts.
    """
    ours = [] if source.name in INSTALLED else [str(source)]
    theirs = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*ours, *filter(None, theirs)]))
