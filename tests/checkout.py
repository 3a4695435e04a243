"""The committed tree, which some programs say that they ran, and run clones of."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def last_commit() -> str:
    """Return the commit that is checked out."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def clone(path: Path, commit: str) -> None:
    """Make a fresh clone of the tree at a commit."""
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", ROOT, path], check=True)
    subprocess.run(["git", "checkout", "--quiet", "--detach", commit], cwd=path, check=True)
