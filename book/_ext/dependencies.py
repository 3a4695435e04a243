"""Execute notebooks in parallel, and again when what they depend on has changed, not only their own cells.

The execution cache knows a notebook by its code cells alone. This extension gives each notebook a fingerprint over the
files behind it: the modules of ``isa`` and ``edition`` that it imports (followed through their own imports), every
file under ``book/``, ``isa/`` or ``runs/`` that one of its string literals names (a glob counts, and ``runs`` alone for
all specifications and records), and the pinned versions in ``constraints.txt``. Where the fingerprint differs from that
of the last successful build, the cached execution is dropped and the page is read again.

Before Sphinx reads the pages, all notebooks without a cached execution are executed, one per core at a time, and their
outputs are put into the cache. It works the same for ``make book`` and for a plain ``jupyter-book build .``.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from sphinx.util import logging

logger = logging.getLogger(__name__)
ROOMS = ("book/", "isa/", "runs/")
PACKAGES = {"isa": "", "edition": "book"}  # and the folders they lie in


def imported_modules(source: str, package: str = "") -> set[str]:
    """Dotted names of all modules of ours that this source may import; ``package`` resolves relative imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1] + ([base] if base else []))
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] in PACKAGES}


@cache
def module_files(root: Path, name: str) -> frozenset[Path]:
    """The file of a module, those of the packages around it, and none where the name is no module (a function, say)."""
    files = set()
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        stem = root.joinpath(PACKAGES[parts[0]], *parts[:depth])
        files.update(path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file())
    return frozenset(files)


@cache
def imports_of(root: Path, file: Path) -> frozenset[Path]:
    relative = file.relative_to(root)
    package = ".".join(part for part in relative.parent.parts if part != "book")
    names = imported_modules(file.read_text(encoding="utf-8"), package)
    return frozenset().union(*(module_files(root, name) for name in names))


def code_of(notebook: nbformat.NotebookNode) -> str:
    """The notebook's Python, without the lines that only IPython understands."""
    lines = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def dependencies(root: Path, notebook: nbformat.NotebookNode) -> set[Path]:
    """All files on which the outputs of a notebook depend."""
    source = code_of(notebook)
    found = {root / "constraints.txt"}
    open_files = set().union(*(module_files(root, name) for name in imported_modules(source)))
    while open_files:
        file = open_files.pop()
        if file not in found:
            found.add(file)
            open_files |= imports_of(root, file)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value == "runs":  # the folder: all its specifications and records
            found.update(path for kind in ("yaml", "csv") for path in root.glob(f"runs/*.{kind}"))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(ROOMS):
            # a record lies beside its spec under the same stem, so naming one depends on both
            pattern = str(Path(node.value).with_suffix(".*")) if node.value.startswith("runs/") else node.value
            found.update(path for path in root.glob(pattern) if path.is_file())
    return found


def fingerprint(root: Path, notebook: nbformat.NotebookNode) -> str:
    digest = hashlib.sha256()
    for path in sorted(dependencies(root, notebook)):
        if path.is_file():
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _store(app) -> Path:
    return Path(app.env.mystnb_config.execution_cache_path) / "page-fingerprints.json"


def prepare(app, env, added, changed, removed):
    """Drop the cached executions whose dependencies changed, and execute what has none; return their pages."""
    store = _store(app)
    known = _known(store)
    executions = get_cache(store.parent)
    env.notebook_fingerprints = {}
    missing = {}
    for docname in env.found_docs:
        path = Path(env.doc2path(docname))
        if path.suffix != ".ipynb":
            continue
        notebook = nbformat.read(path, as_version=4)
        now = env.notebook_fingerprints[docname] = fingerprint(Path(app.srcdir), notebook)
        try:
            cached = executions.match_cache_notebook(notebook).pk
        except KeyError:  # never executed, or its own cells have changed
            missing[path] = notebook
            continue
        if known["executed"].get(docname) != now:
            executions.remove_cache(cached)
            missing[path] = notebook
            logger.info("[dependencies] %s: what it depends on has changed, it is executed again", docname)
    if env.mystnb_config.execution_mode == "cache":
        execute(missing, executions, env.mystnb_config, Path(app.srcdir))
        _remember(store, known | {"executed": env.notebook_fingerprints})
    return [docname for docname, now in env.notebook_fingerprints.items() if known["read"].get(docname) != now]


def execute(notebooks: Mapping[Path, nbformat.NotebookNode], executions, config, root: Path) -> None:
    """Execute notebooks, one per core at a time, into the cache; MyST-NB reports the one that fails."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(cores, len(notebooks)))
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = threads or str(cores // workers)  # for the kernels, which share the cores
    options = {"timeout": config.execution_timeout, "allow_errors": config.execution_allow_errors}
    options["extra_arguments"] = ["--IPKernelApp.log_level=40"]  # a kernel warns of the machine's own sockets
    try:
        with ThreadPoolExecutor(workers) as pool:
            running = {
                pool.submit(single_nb_execution, notebook, str(path.parent), **options): path
                for path, notebook in notebooks.items()
            }
            for number, done in enumerate(as_completed(running), 1):
                path, result = running[done], done.result()
                print(
                    f"page {number} of {len(running)}: {path.relative_to(root)}, {result.time:.0f} s"
                    + (", failed" if result.err else ""),
                    file=sys.stderr,
                    flush=True,
                )
                if result.err is None:
                    bundle = CacheBundleIn(result.nb, str(path), data={"execution_seconds": result.time})
                    executions.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]


def _known(store: Path) -> dict[str, dict[str, str]]:
    """Return the fingerprints of the last executions, and those with which pages were last read."""
    return json.loads(store.read_text()) if store.is_file() else {"executed": {}, "read": {}}


def _remember(store: Path, known: dict[str, dict[str, str]]) -> None:
    store.parent.mkdir(parents=True, exist_ok=True)
    temporary = store.with_suffix(".tmp")
    temporary.write_text(json.dumps(known, indent=1, sort_keys=True))
    temporary.replace(store)


def remember(app, exception):
    if exception is None and hasattr(app.env, "notebook_fingerprints"):
        store = _store(app)
        _remember(store, _known(store) | {"read": app.env.notebook_fingerprints})


def setup(app):
    app.connect("env-get-outdated", prepare)
    app.connect("build-finished", remember)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
