"""What this project installs from elsewhere: hashes of the files, and the licences they come under.

``python tests/supply_chain.py lock`` writes ``locks/`` anew from ``pyproject.toml`` and ``constraints.txt``, by uv.
``python tests/supply_chain.py licences`` writes ``runs/licences.csv``, from the metadata of what is installed, and from
pip's report on what is not, as on other systems; the report needs a pip that is newer than 25.

A package belongs to one of two lists: ``locks/torch.txt`` holds PyTorch and what only its build for CUDA brings along,
``locks/packages.txt`` everything else. ``locks/torch-cpu.txt`` stands in for the former on a Linux machine without GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "locks"
LICENCES = ROOT / "runs" / "licences.csv"
COLUMNS = ("package", "version", "licence", "for")
OLDEST_PYTHON = "3.11"

CPU_BUILDS = {
    # of the wheel that this edition was tested with
    "3.11": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    # as several public projects have them in their own locks; not installed for the tests of this edition
    "3.12": "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
    "3.13": "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
}
"""SHA-256 of torch 2.13.0+cpu for Linux on x86-64, by Python: PyTorch publishes these builds apart from the others."""

PERMISSIVE = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "PSF-2.0",
    "Public Domain",
    "Zlib",
}
"""Licences that ask for no more than that their text is kept where their code is."""

EXPLAINED = {
    "MPL-2.0": "asks that changes to its own files are published; used unchanged, and no file of it is copied here",
    "GPL": "docutils: its COPYING names a few of its files, which no page and no code here uses; none is copied here",
    "none stated": "cuda-toolkit: NVIDIA's too; it holds no code, and only names other packages",
    "proprietary": "NVIDIA's libraries, which pip installs with PyTorch's build for CUDA on Linux; under NVIDIA's own "
    "terms, needed by no other build, and none is copied here",
}
"""Licences that ask for more, and why this project may be under the MIT licence all the same."""

_NAMES = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD",
    "bsd license": "BSD",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "gnu general public license (gpl)": "GPL",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "other/proprietary license": "proprietary",
    "public domain": "Public Domain",
    "python software foundation license": "PSF-2.0",
    "licenseref-nvidia-proprietary": "proprietary",
    "licenseref-nvidia-software-license": "proprietary",
    "nvidia proprietary software": "proprietary",
}


# --- locks ------------------------------------------------------------------------------------------------------------


def read_lock(path: Path) -> dict[str, tuple[Requirement, list[str]]]:
    """Return the requirement and the hashes of each package in a list, by its canonical name.

    Raises
    ------
    ValueError
        If a line is neither a comment, an exact version nor a SHA-256.
    """
    held: dict[str, tuple[Requirement, list[str]]] = {}
    name = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removesuffix("\\").strip()
        if not text or text.startswith("#"):
            continue
        if found := re.fullmatch(r"--hash=sha256:([0-9a-f]{64})", text):
            held[name][1].append(found[1])
            continue
        requirement = Requirement(text)
        if not re.fullmatch(r"==\d[\w.]*", str(requirement.specifier)) or requirement.url:
            raise ValueError(f"{path.name} must hold exact versions and hashes, got {text!r}")
        name = canonicalize_name(requirement.name)
        if name in held:
            raise ValueError(f"{path.name} must name each package once, got {name} twice")
        held[name] = requirement, []
    return held


def write_locks(text: str) -> None:
    """Divide what uv has written into the two lists, and write the third."""
    blocks = re.findall(r"^\S.*(?:\n[ ]+--hash=\S+.*)+", text, re.MULTILINE)
    by_name = {canonicalize_name(re.match(r"[\w.-]+", block)[0]): block for block in blocks}
    of_torch = {name for name in by_name if name in ("torch", "triton") or re.match(r"nvidia-|cuda-", name)}
    made = "# Made by `python tests/supply_chain.py lock`: exact versions, with the hashes of all files of each.\n"
    for name, wanted in (("packages.txt", by_name.keys() - of_torch), ("torch.txt", of_torch)):
        lines = [by_name[package] for package in sorted(wanted)]
        (LOCKS / name).write_text(made + "\n".join(lines) + "\n", encoding="utf-8")
    version = re.match(r"torch==[\w.]+", by_name["torch"])[0]
    cpu = [
        f"{made}# PyTorch's builds without CUDA for Linux on x86-64 and Python {', '.join(CPU_BUILDS)}, in this order.",
        "# That for 3.11 is the one that was tested with. pip has to be told where PyTorch publishes them.",
        " \\\n".join([version, *(f"    --hash=sha256:{digest}" for digest in CPU_BUILDS.values())]),
        by_name["triton"],  # the tests take it without CUDA, too
    ]
    (LOCKS / "torch-cpu.txt").write_text("\n".join(cpu) + "\n", encoding="utf-8")


def lock() -> None:
    """Resolve the pinned set for all systems and write the lists."""
    LOCKS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        build = Path(folder) / "build.in"  # what the installation itself takes
        build.write_text("hatchling\neditables\n", encoding="utf-8")
        target = Path(folder) / "all.txt"
        options = ["--all-extras", "--universal", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
        where = ["--constraint", "constraints.txt", "--python-version", OLDEST_PYTHON, "--output-file", target]
        subprocess.run(["uv", "pip", "compile", "pyproject.toml", build, *options, *where], cwd=ROOT, check=True)
        write_locks(target.read_text(encoding="utf-8"))


# --- licences ---------------------------------------------------------------------------------------------------------


def licence(metadata: Mapping[str, object], texts: Iterable[str] = ()) -> str:
    """Say under which licence a package is, as an SPDX expression where there is a name for it.

    Parameters
    ----------
    metadata
        ``license_expression``, ``license`` and ``classifier``, as a package's metadata in JSON has them.
    texts
        The licences' texts, which decide where the metadata say nothing.
    """
    if expression := metadata.get("license_expression"):
        return _NAMES.get(str(expression).lower(), str(expression))
    marks = [str(mark).split(" :: ") for mark in metadata.get("classifier") or ()]
    kinds = [mark[-1] for mark in marks if mark[0] == "License" and mark[-1] != "OSI Approved"]
    kinds = sorted({_NAMES.get(kind.lower(), kind) for kind in kinds})
    field = str(metadata.get("license") or "").strip()
    named = _NAMES.get(field.lower(), field)
    if "proprietary" in (named, *kinds):  # the stricter of the two, where they differ
        return "proprietary"
    if named and all(part in PERMISSIVE | EXPLAINED.keys() for part in parts(named)):
        return named
    if kinds:
        return " AND ".join(kinds)
    for text in texts:
        if re.search(r"Permission\s+is\s+hereby\s+granted,\s+free\s+of\s+charge", text):
            return "MIT"
    return "none stated"


def parts(expression: str) -> list[str]:
    """Return the licences that an expression names; of alternatives, the first that is permissive where one is."""
    found = []
    for term in re.split(r"\s+AND\s+", expression.replace("(", " ").replace(")", " ").strip()):
        choices = [choice.strip() for choice in re.split(r"\s+OR\s+", term)]
        found.append(next((choice for choice in choices if choice in PERMISSIVE), choices[0]))
    return found


def installed(name: str) -> tuple[dict[str, object], list[str]] | None:
    """Return the metadata and the licences' texts of a package that is installed here."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    files = [path for path in distribution.files or () if re.search(r"licen[cs]e|copying", path.name, re.IGNORECASE)]
    texts = [path.locate().read_text(encoding="utf-8", errors="replace") for path in files if path.locate().is_file()]
    return distribution.metadata.json, texts


def reported(requirements: Iterable[Requirement]) -> dict[str, dict[str, object]]:
    """Return the metadata of packages that are not installed here, as pip reports them before it installs anything."""
    wanted = [f"{one.name}{one.specifier}" for one in requirements]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", report]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *wanted], check=True)
        held = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {canonicalize_name(one["metadata"]["name"]): one["metadata"] for one in held}


def needed_for(metadata: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """Say of each package what it is installed for: the module, an extra of it, or the installation itself."""
    own = importlib.metadata.distribution("isa").metadata.json["requires_dist"]
    found: dict[str, str] = {}
    for extra, what in (("", "the module"), ("book", "the book"), ("test", "tests"), ("cluster", "clusters")):
        todo = [one for one in map(Requirement, own) if _applies(one, {"", extra})]
        while todo:
            one = todo.pop()
            name = canonicalize_name(one.name)
            if name in found or name not in metadata:
                continue
            found[name] = what
            further = metadata[name].get("requires_dist") or ()
            todo += [other for other in map(Requirement, further) if _applies(other, {"", *one.extras})]
    return {name: found.get(name, "installing") for name in metadata}


_SYSTEMS = [
    {"sys_platform": system, "platform_system": name, "os_name": kind, "python_version": python} | interpreter
    for system, name, kind in (("linux", "Linux", "posix"), ("darwin", "Darwin", "posix"), ("win32", "Windows", "nt"))
    for python in ("3.11", "3.12", "3.13")
    for interpreter in (
        {"implementation_name": "cpython", "platform_python_implementation": "CPython"},
        {"implementation_name": "pypy", "platform_python_implementation": "PyPy"},
    )
]


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return not marker or any(marker.evaluate({**system, "extra": extra}) for system in _SYSTEMS for extra in extras)


def licences() -> None:
    """Write the table."""
    with_torch = read_lock(LOCKS / "torch.txt")
    locked = {**read_lock(LOCKS / "packages.txt"), **with_torch}
    here = {name: installed(name) for name in locked}
    found = {name: held[0] for name, held in here.items() if held}
    found |= reported(locked[name][0] for name, held in here.items() if held is None)
    purpose = needed_for(found) | {name: "PyTorch's build for CUDA" for name in with_torch if name != "torch"}
    rows = []
    for name, (requirement, _) in sorted(locked.items()):
        texts = here[name][1] if here[name] else ()
        version = str(requirement.specifier).removeprefix("==")
        cells = (name, version, licence(found[name], texts), purpose[name])
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    from isa._files import write_table

    write_table(LICENCES, COLUMNS, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write what this project says of what it installs.")
    parser.add_argument("what", choices=["lock", "licences"], help="locks/, or runs/licences.csv")
    {"lock": lock, "licences": licences}[parser.parse_args().what]()
