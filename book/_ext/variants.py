"""Notebooks of pages that differ from another page in parameters and words only, as ``book/variants.yaml`` says.

They are written before the pages are collected, and are ordinary notebooks from then on; git ignores them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from sphinx.util.osutil import FileAvoidWrite


def variant(text: str, change: dict) -> str:
    """Return a notebook's text with the parameters, cells and words of an entry of ``book/variants.yaml``."""
    for old, new in change.get("replace", {}).items():
        old, new = (json.dumps(words, ensure_ascii=False)[1:-1] for words in (old, new))
        if old not in text:
            raise ValueError(f"book/variants.yaml: {change['from']} does not contain {old}")
        text = text.replace(old, new)
    notebook = json.loads(text)
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] not in change.get("without", ())]
    for cell in notebook["cells"]:
        source = change.get("cells", {}).get(cell["id"], "".join(cell["source"]))
        for name, value in change.get("parameters", {}).items():
            line = rf"(?m)^({name}: \w+ = ).*(?=  # )"
            source = re.sub(line, lambda match, value=value: match[1] + json.dumps(value), source)
        cell["source"] = source.splitlines(keepends=True)
    notebook["metadata"]["variant_of"] = f"{change['from']}.ipynb"  # for the foot of the page
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def write(root: Path) -> None:
    """Write the notebooks of all variants that are missing or out of date."""
    table = root / "book" / "variants.yaml"
    changes = yaml.safe_load(table.read_text(encoding="utf-8")) if table.is_file() else {}
    for name, change in changes.items():
        text = variant((root / f"{change['from']}.ipynb").read_text(encoding="utf-8"), change)
        with FileAvoidWrite(root / f"{name}.ipynb") as page:
            page.write(text)


def setup(app):
    write(Path(app.srcdir))
