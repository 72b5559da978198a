"""What `codeseg segment` left below a folder -> pictures of the report: any words on any picture.

    FOLDER/**/segments.json + NAME/overlay.png    as written by stages/segment.py

The thesis's figure 4.4: free-form words on pictures of no benchmark.
"""

import json
from html import escape
from pathlib import Path

from PIL import Image

from codeseg.stages.pages import figures
from codeseg.stages.pages.report_parts import Section

MOST_PICTURES = 12  # of one segments.json
WIDTH = 300  # pixels on the page: the overlay carries its legend


def words_section(folder: Path) -> Section | None:
    """Every segmented picture with its legend; None where nothing was segmented."""
    html = "".join(_pictures(path) for path in sorted(folder.glob("**/segments.json")))
    if not html:
        return None
    note = "Pictures that `codeseg segment` was given, with the words it was asked for."
    return Section("Any words on any picture", html, note)


def _pictures(path: Path) -> str:
    """One call's pictures.

    Raises:
        ValueError: the file is not what `codeseg segment` writes.
    """
    try:
        found = json.loads(path.read_text())
        rows = [row for row in found["images"] if "error" not in row][:MOST_PICTURES]
        texts = list(dict.fromkeys(s["text"] for row in rows for s in row["segments"]))
        cells = [(path.parent / row["folder"] / "overlay.png", Path(row["image"])) for row in rows]
        method = found["method"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not written by codeseg segment ({error!r})") from None
    pictures = "".join(
        figures.picture(Image.open(overlay), picture.name, width=WIDTH)
        for overlay, picture in cells
        if overlay.is_file()
    )
    asked = ", ".join(f"“{escape(text)}”" for text in texts)
    return f'<p>{asked} ({escape(method)})</p><div class="row">{pictures}</div>'
