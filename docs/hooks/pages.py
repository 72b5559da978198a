"""Pages of the site that are no Markdown below docs/: the notebook, and two files of the root.

docs/quickstart.ipynb -> notebook.md: its texts, code and saved outputs; CHANGELOG.md and
CONTRIBUTING.md as they are but for their links. Made in memory when the site is built.
"""

import base64
import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
NOTEBOOK, NOTEBOOK_PAGE = "quickstart.ipynb", "notebook.md"


def on_files(files: Files, config: Any) -> Files:
    """MkDocs calls this once it has listed docs/."""
    root = Path(config.config_file_path).parent
    for source, page in ROOT_PAGES.items():
        content = (root / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=content))
    notebook = json.loads((Path(config.docs_dir) / NOTEBOOK).read_text(encoding="utf-8"))
    pictures: dict[str, bytes] = {}
    text = notebook_page(notebook, pictures)
    files.append(File.generated(config, NOTEBOOK_PAGE, content=text))
    for name, content_bytes in pictures.items():
        files.append(File.generated(config, name, content=content_bytes))
    return files


def notebook_page(notebook: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """A notebook as Markdown.

    Args:
        notebook: its JSON.
        pictures: takes the outputs' PNGs by the name under which the page shows them.
    """
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        magic, _, rest = source.partition("\n")
        parts.append(fence("sh", rest) if magic.startswith("%%") else fence("python", source))
        for output in cell["outputs"]:
            parts += shown(output, pictures)
    return "\n\n".join(parts) + "\n"


def shown(output: dict[str, Any], pictures: dict[str, bytes]) -> list[str]:
    """One saved output: a picture, or the text it has."""
    data = output.get("data", {})
    if "image/png" in data:
        name = f"images/notebook-{len(pictures) + 1}.png"
        pictures[name] = base64.b64decode("".join(data["image/png"]))
        return [f"![what the cell above shows]({name})"]
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return [fence("text", text)] if text else []


def fence(language: str, text: str) -> str:
    """A block of code or of output."""
    return f"```{language}\n{text.rstrip()}\n```"
