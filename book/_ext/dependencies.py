"""Execute notebooks in parallel before Sphinx reads them, and again when a file that they depend on has changed.

The execution cache knows a notebook by its code cells alone. This extension adds a fingerprint of the files behind it:
the modules of ``isa`` and ``edition`` that it imports (and those that these import), every file under ``book/``,
``isa/`` or ``runs/`` that a string literal of it or of these modules names (globs too; in a notebook, ``runs`` alone
stands for the files right below it), and the pinned versions in ``constraints.txt``.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from itertools import accumulate
from multiprocessing.pool import ThreadPool
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import ExecutionResult, single_nb_execution
from sphinx.errors import ExtensionError

FOLDERS = ("book/", "isa/", "runs/")


@cache
def mentions(root: Path, source: str) -> tuple[frozenset[Path], frozenset[str]]:
    """Return the files of our modules that code imports itself, with the packages around them, and its literals."""
    files, words = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
        elif isinstance(node, ast.Import | ast.ImportFrom):  # absolute, as ruff demands
            module = getattr(node, "module", "")
            for alias in node.names:
                package, *parts = f"{module}.{alias.name}".lstrip(".").split(".")
                stem = root / ("book" if package == "edition" else "") / package
                paths = accumulate(parts, Path.joinpath, initial=stem)
                files |= {file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")}
    return frozenset(filter(Path.is_file, files)), frozenset(words)


def named_files(root: Path, text: str) -> Iterable[Path]:
    """Return the files that a string literal names."""
    text = "runs/*" if text == "runs" else text
    if text.startswith("runs/"):  # a record has the stem of its specification, so naming one depends on both
        text = str(Path(text).with_suffix(".*"))
    return filter(Path.is_file, root.glob(text)) if text.startswith(FOLDERS) else ()


def dependencies(root: Path, notebook: nbformat.NotebookNode) -> set[Path]:
    """Return all files on which the outputs of a notebook depend."""
    lines = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code").splitlines()
    source = "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))  # without magics
    files, (new, names) = {root / "constraints.txt"}, mentions(root, source)
    while new:
        files |= new
        found = [mentions(root, file.read_text(encoding="utf-8")) for file in new]
        names = names.union(*(words - {"runs"} for _, words in found))  # a word that modules have in other senses
        new = frozenset().union(*(more for more, _ in found)) - files
    return files.union(*(named_files(root, name) for name in names))


def content(path: Path) -> bytes:
    """Return the content of a file; of another notebook, only the title and the parameters, which some pages list."""
    if path.suffix != ".ipynb":
        return path.read_bytes()
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = next(("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"), "")
    return ("".join(cells[0]["source"]).partition("\n")[0] + code).encode()


def fingerprint(root: Path, notebook: nbformat.NotebookNode) -> str:
    """Return a hash of the names and contents of all files on which the outputs of a notebook depend."""
    files = sorted(dependencies(root, notebook))
    hashes = [(str(path.relative_to(root)), hashlib.sha256(content(path)).hexdigest()) for path in files]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def prepare(app, env, added, changed, removed):
    """Execute notebooks that have no valid cached execution; return pages whose fingerprints changed, to be read."""
    if env.mystnb_config.execution_mode != "cache":
        return []
    before, env.executions = getattr(env, "executions", {}), {}
    executions = get_cache(env.mystnb_config.execution_cache_path)
    stale, failures = {}, []
    for name in sorted(env.found_docs, key=lambda name: (name not in app.config.execute_first, name)):
        path = Path(env.doc2path(name))
        if path.suffix == ".ipynb":
            notebook = nbformat.read(path, as_version=4)
            now, cached = fingerprint(Path(app.srcdir), notebook), {}
            with suppress(KeyError):  # never executed, or its own cells have changed
                cached = executions.match_cache_notebook(notebook).data
            env.executions[name] = cached | {"fingerprint": now}
            if cached.get("fingerprint") != now:
                stale[name] = path, notebook
    for number, (name, result) in enumerate(execute(stale, env.mystnb_config), 1):
        outcome = f"failed\n{result.err}" if result.err else f"{result.time:.0f} s"
        print(f"page {number} of {len(stale)}: {name}, {outcome}", file=sys.stderr, flush=True)
        if result.err:
            failures.append(name)
            continue
        env.executions[name]["execution_seconds"] = result.time
        bundle = CacheBundleIn(result.nb, str(stale[name][0]), data=env.executions[name])
        executions.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    if failures:
        raise ExtensionError(f"notebooks failed: {', '.join(failures)}; look above for the cause")
    return [name for name, execution in env.executions.items() if before.get(name) != execution]


def execute(stale: dict[str, tuple[Path, nbformat.NotebookNode]], config) -> Iterator[tuple[str, ExecutionResult]]:
    """Execute notebooks, one per core at a time, and yield each page's name and result as soon as it is ready."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(cores, len(stale)))
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // workers))  # for the kernels, which share the cores
    if len(stale) > 1 and sys.platform == "linux":
        import forked

        forked.use()
    options = {"timeout": config.execution_timeout, "allow_errors": config.execution_allow_errors}
    options["extra_arguments"] = ["--IPKernelApp.log_level=40"]  # a kernel warns of the machine's own sockets

    def run(name: str) -> tuple[str, ExecutionResult]:
        path, notebook = stale[name]
        return name, single_nb_execution(notebook, str(path.parent), **options)

    with ThreadPool(workers) as pool:
        yield from pool.imap_unordered(run, stale)


def setup(app):
    app.add_config_value("execute_first", [], "")  # the pages that take longest
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.*")))
    # a change in an extension reads all pages again
    app.add_config_value("extensions_hash", hashlib.sha256(sources).hexdigest(), "env")
    app.connect("env-get-outdated", prepare)
