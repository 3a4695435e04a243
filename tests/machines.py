"""Try this package on other machines, each stood in for by a fresh environment: ``make machines``.

For every condition of :data:`CONDITIONS`: a clone of the committed tree in a new folder, the pinned set installed by
``make`` into an environment of its own, and then, under the condition, the checks of :data:`CHECKS`. A row of
``runs/machines.csv`` says what came of it. What has passed is not tried again, unless it is named.

``python tests/machines.py --here "a GPU, PyTorch 2.11"`` tries the environment that runs it instead, as it is, for
machines where another build of PyTorch is installed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import pty
import re
import shutil
import site
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import checkout

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "runs" / "machines.csv"
COLUMNS = ("condition", "python", "torch", "ran", "passed", "note", "platform", "commit")
COMPILERS = re.compile(r"(.*-)?(gcc|g\+\+|cc|c\+\+|cpp|clang|clang\+\+|icpx|cl)(-\d[\d.]*)?(\.exe)?")


@dataclass(frozen=True)
class Condition:
    """One kind of machine, as far as a fresh environment can stand in for it."""

    name: str
    python: str = ""
    """Version of Python, the least patch of it that is found; the running one where empty."""
    torch: str = ""
    """What pip is asked for instead of the pinned version."""
    locked: bool = False
    """Installed by hash."""
    folder: str = "clone"
    cores: int | None = None
    compiler: bool = True
    writable: bool = True
    """False: nothing but the home folder, which holds the cache, can be written to."""
    terminal: bool = True
    """False: no stream is a terminal, and the locale is C."""


OLDEST_TORCH = next(
    text.removeprefix("torch>=")
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    if text.startswith("torch>=")
)

CONDITIONS = (
    Condition("Python 3.11", python="3.11"),
    Condition("Python 3.12", python="3.12"),
    Condition("Python 3.13", python="3.13"),
    Condition("the oldest PyTorch allowed", torch=f"torch=={OLDEST_TORCH}.*"),
    Condition("the newest PyTorch", torch="torch"),
    Condition("installed by hash", locked=True),
    Condition("no C++ compiler", compiler=False),
    Condition("one core", cores=1),
    Condition("no write permission beside the cache", writable=False),
    Condition("a path with spaces and non-ASCII characters", folder="Räume für β"),
    Condition("no terminal, locale C", terminal=False),
)

CHECKS = {
    "import": "{python} {own} --check import --condition {name}",
    "command line": "{bin}/isa status {clone}/runs/dsprites.yaml --device cpu",
    "images": "{bin}/isa data dsprites --verify --contact-sheet {home}/sheet.png",
    "sweep": "{python} {clone}/tests/tiny_sweep.py sweep {home}/tiny.yaml",
    "compile": "{python} {own} --check compile --condition {name}",
    "tests": "{python} -m pytest -n 0 -q -p no:cacheprovider tests/test_prior_density.py tests/test_mig.py",
    "page": "{bin}/papermill book/prior/functions.ipynb {home}/page.ipynb",
}
"""What is run, in this order; an extra one for a cache that must be the only place written to, and for the book."""

CACHE = {"cache": "{bin}/isa data cars3d"}
BOOK = {"book": "make book"}

SPEC = """\
title: Runs that take milliseconds
every: {dataset: cars3d, model: small, latent_dim: 3, batch_size: 16, precision: fp32}
tiers:
  1:
    - {objective: beta-vae, beta: [1, 4], steps: 6, seeds: 2}
    - {objective: isa-vae, subspaces: [2, 1], steps: 6, seeds: 1}
  2:
    - {objective: isa-vae, subspaces: [2, 1], steps: 300, seeds: 1}
"""
"""Its last run is long enough that its step is compiled."""


class Untried(Exception):
    """A condition cannot be had here; says why."""


class Failed(Exception):
    """A command of a condition failed; says which and how."""


# --- what runs inside an environment ----------------------------------------------------------------------------------


def check_import(condition: Condition) -> None:
    """The condition is what it says, and the prior that is imported is the one of this clone."""
    import torch

    import isa

    clone = Path(__file__).resolve().parent.parent
    assert Path(isa.__file__).resolve().parent.parent == clone, "another copy is imported"
    value = isa.isa_prior((2, 1), p0=2.0, p1=2.0, scale=2.0).log_prob(torch.zeros(3))
    assert torch.isclose(value, torch.distributions.Normal(0, 1).log_prob(torch.zeros(3)).sum())
    if condition.cores is not None:
        assert len(os.sched_getaffinity(0)) == condition.cores
    if not condition.compiler:
        assert not [name for name in ("g++", "gcc", "c++", "cc", "clang++") if shutil.which(name)]
    if not condition.writable:
        for folder in (clone, clone / "runs", Path(sys.prefix), Path.home().parent):
            try:
                (folder / "written").touch()
            except OSError:
                continue
            raise AssertionError(f"{folder} can be written to")
    if condition.folder != "clone":
        assert condition.folder in str(clone) and " " in condition.folder and not condition.folder.isascii()
    streams = [stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)]
    assert all(streams) if condition.terminal else not any(streams)
    if not condition.terminal:
        assert sys.stdout.encoding.lower() in ("ascii", "ansi_x3.4-1968"), sys.stdout.encoding


def check_compile(condition: Condition) -> None:
    """The sweep's long run was compiled, or said once that it is not; without a compiler it must be the latter."""
    import tiny_sweep  # noqa: F401 - puts in the networks that the records name

    from isa.sweep import read_records

    home = Path.home()
    records = read_records(home / "tiny.csv")
    assert len(records) == 6 and all(record["status"] == "trained" for record in records), len(records)
    (compiled,) = [record["compiled"] for record in records if record["total_steps"] == 300]
    said = re.findall(r"runs uncompiled: (.*)", (home / "sweep.log").read_text(encoding="utf-8"))
    assert len(said) == (not compiled), f"compiled: {compiled}; said {len(said)} times that it is not"
    assert condition.compiler or not compiled, "compiled without a compiler"
    print("the step was compiled" if compiled else f"the step ran uncompiled, and said so once: {said[0].strip()}")


# --- environments -----------------------------------------------------------------------------------------------------


def interpreters(version: str) -> list[str]:
    """Return every Python of this version that is found, the least patch first."""
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions", Path("/usr")]
    found = [shutil.which(f"python{version}")]
    for root in roots:
        found += map(str, [*root.glob(f"{version}*/bin/python"), *root.glob(f"bin/python{version}")])
    patches = {}
    for path in filter(None, found):
        asked = subprocess.run([path, "-c", "import platform; print(platform.python_version())"], capture_output=True)
        if asked.returncode == 0:
            patches.setdefault(asked.stdout.decode().strip(), path)
    return [patches[patch] for patch in sorted(patches, key=lambda text: [int(x) for x in re.findall(r"\d+", text)])]


def build_of_torch(python: str, wanted: str, work: Path, cuda: bool) -> str:
    """Return the version of PyTorch that pip would install; one that brings CUDA along only where that is allowed.

    Raises
    ------
    Untried
        If there is none, or none that is allowed.
    """
    tools = work.parent / "tools"  # a pip that reads what a package needs without fetching it
    if not tools.exists():
        subprocess.run([sys.executable, "-m", "venv", tools], check=True)
        command = [tools / "bin" / "python", "-m", "pip", "install", "--quiet", "--upgrade", "pip"]
        subprocess.run(command, check=True, env=_without(os.environ, "PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"))
    report = work / "report.json"
    options = ["--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", report, wanted]
    asked = subprocess.run(
        [tools / "bin" / "python", "-m", "pip", "--python", python, "install", *options],
        env=_without(os.environ, "PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"),
        capture_output=True,
        text=True,
    )
    if asked.returncode:
        raise Untried(f"pip finds no {wanted} here")
    (found,) = json.loads(report.read_text(encoding="utf-8"))["install"]
    version = found["metadata"]["version"]
    brought = [text for text in found["metadata"].get("requires_dist", ()) if re.match(r"nvidia-|cuda-", text)]
    if brought and not cuda:
        raise Untried(f"no build for CPUs at hand: the one that pip finds, {version}, brings CUDA along")
    return version


def _without(environment: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


def prepare(condition: Condition, work: Path, commit: str, cuda: bool) -> Path:
    """Clone the tree of a commit and install the pinned set; returns the clone."""
    python = sys.executable
    if condition.python:
        found = interpreters(condition.python)
        if not found:
            raise Untried(f"no Python {condition.python} found")
        python = found[0]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = next(line for line in lines if line.startswith("torch=="))
    version = build_of_torch(python, condition.torch or pinned, work, cuda)
    clone = work / condition.folder
    checkout.clone(clone, commit)
    if condition.torch:
        # setuptools, too: what an older PyTorch asks for is older than the pinned one
        kept = [line for line in lines if not re.match(r"(torch|triton|setuptools)==|nvidia-|cuda-", line)]
        text = "\n".join([*kept, f"torch=={version}"]) + "\n"
        (clone / "constraints.txt").write_text(text, encoding="utf-8")
    options = [f"PYTHON={python}", *(["LOCKED=cpu"] if condition.locked else [])]
    made = subprocess.run(
        ["make", *options, ".venv/.ready"],
        cwd=clone,
        env=_without(os.environ, "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VENV", "PYTHON", "PYTHONPATH", "VIRTUAL_ENV"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise Failed(f"make: {last_words(made.stdout + made.stderr)}")
    return clone


def surroundings(condition: Condition, home: Path) -> dict[str, str]:
    """Return the environment variables of the checks; nothing of the user's own but where programs are."""
    (home / "tmp").mkdir(parents=True)
    (home / "tiny.yaml").write_text(SPEC, encoding="utf-8")
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS") if name in os.environ}
    kept["PYTHONUSERBASE"] = site.getuserbase()  # where the environment at hand is the user's own
    kept |= {"HOME": str(home), "ISA_CACHE_DIR": str(home / "cache"), "TMPDIR": str(home / "tmp")}
    if condition.terminal:
        kept |= {"TERM": "xterm", "LANG": "C.UTF-8"}
    else:
        kept |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    if not condition.compiler:
        commands = home / "bin"
        commands.mkdir()
        for folder in filter(None, kept["PATH"].split(os.pathsep)):
            for program in Path(folder).iterdir() if Path(folder).is_dir() else ():
                link = commands / program.name
                if not (COMPILERS.fullmatch(program.name) or link.is_symlink()):
                    link.symlink_to(program)
        kept["PATH"] = str(commands)
    return kept


READ_ONLY = """
mount --make-rprivate / && mount --bind "$1" "$1" || exit 125
for place in / /tmp /home /var/tmp; do mount -o remount,bind,ro "$place" 2>/dev/null; done
touch "$1/written" || exit 125
shift
exec "$@"
"""
"""In a name space of its own, every file system is read-only but for one folder."""


def run(condition: Condition, command: list[str], *, cwd: Path, env: Mapping[str, str], home: Path) -> tuple[int, str]:
    """Run a command under the condition; returns its exit status and what it printed."""
    if not condition.writable:
        as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
        command = ["unshare", *as_root, "--mount", "sh", "-c", READ_ONLY, "sh", str(home), *command]

    def restrict() -> None:
        if condition.cores is not None:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: condition.cores])

    options = {"cwd": cwd, "env": dict(env), "preexec_fn": restrict, "start_new_session": True}
    if not condition.terminal:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        ended = subprocess.run(command, **options, **streams, timeout=3600)
        return ended.returncode, ended.stdout.decode("utf-8", "replace")
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, **options, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        printed = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux's way of saying that the other end is closed
                break
            if not part:
                break
            printed += part
        os.close(ours)
    return process.returncode, printed.decode("utf-8", "replace")


def last_words(printed: str) -> str:
    """Return the last line that says something, without places of this machine."""
    lines = [line.split("\r")[-1].strip() for line in printed.replace("\r\n", "\n").splitlines()]
    lines = [line for line in lines if line and "Executing:" not in line]
    errors = [line for line in lines if re.search(r"error|exception|failed", line, re.IGNORECASE)]
    text = (errors or lines or ["it said nothing"])[-1]
    return re.sub(r"(?<![\w.])/[^\s'\":,]*/", "", text)[:200]


def check(condition: Condition, checks: Mapping[str, str], *, clone: Path, python: str, home: Path) -> tuple[list, str]:
    """Run the checks; returns the names of those that ran and a note.

    Raises
    ------
    Failed
        At the first that fails.
    """
    env = surroundings(condition, home)
    places = {"python": python, "bin": str(Path(python).parent), "clone": str(clone), "home": str(home)}
    places |= {"own": str(clone / "tests" / "machines.py"), "name": condition.name}
    note = ""
    for number, (name, command) in enumerate(checks.items()):
        words = [word.format(**places) for word in command.split()]
        status, printed = run(condition, words, cwd=clone, env=env, home=home)
        (home / f"{name}.log").write_text(printed, encoding="utf-8")
        if status:
            ran = ", ".join(list(checks)[: number + 1])
            raise Failed(f"{name} ends with {status}: {last_words(printed)} (ran: {ran})")
        if name == "compile":
            note = printed.strip().splitlines()[-1]
    return list(checks), note


# --- the table --------------------------------------------------------------------------------------------------------


def read() -> dict[str, dict[str, str]]:
    """Return the rows by condition."""
    if not TABLE.exists():
        return {}
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {row["condition"]: row for row in csv.DictReader(file)}


def write(row: Mapping[str, object]) -> None:
    """Put a row into the table, in the order of the conditions."""
    held = read() | {str(row["condition"]): {name: str(row[name]) for name in COLUMNS}}
    order = {condition.name: number for number, condition in enumerate(CONDITIONS)}
    from isa._files import write_table

    write_table(TABLE, COLUMNS, sorted(held.values(), key=lambda one: order.get(one["condition"], len(order))))


def versions(python: str) -> tuple[str, str]:
    """Return the versions of Python and of PyTorch in an environment."""
    code = "import platform, torch; print(platform.python_version(), torch.__version__)"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True)
    python_version, torch_version = asked.stdout.split() if asked.returncode == 0 else ("", "")
    return python_version, torch_version


def try_one(condition: Condition, *, here: bool, book: bool, cuda: bool, place: Path | None) -> dict[str, object]:
    """Try a condition and return its row."""
    wanted = condition.torch.removeprefix("torch").removeprefix("==")
    row = {"condition": condition.name, "python": condition.python, "torch": wanted, "ran": "", "note": ""}
    row |= {"passed": "yes", "platform": f"{platform.system()} {platform.machine()}", "commit": checkout.last_commit()}
    checks = {**CHECKS, **({} if condition.writable else CACHE), **(BOOK if book else {})}
    with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as folder:
        work = Path(folder).resolve() / "work"
        work.mkdir()
        home = work / ("home" if condition.folder == "clone" else condition.folder + " home")
        try:
            clone = ROOT if here else prepare(condition, work, row["commit"], cuda)
            python = sys.executable if here else str(clone / ".venv" / "bin" / "python")
            row["python"], row["torch"] = versions(python)
            ran, row["note"] = check(condition, checks, clone=clone, python=python, home=home)
            row["ran"] = ", ".join(ran)
        except Untried as reason:
            row |= {"passed": "not tried", "note": str(reason)}
        except Failed as reason:
            row |= {"passed": "no", "note": str(reason)}
    return row


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the command line."""
    names = [condition.name for condition in CONDITIONS]
    parser = argparse.ArgumentParser(
        description="Try this package on other machines, each stood in for by a fresh environment.",
        epilog=f"conditions: {'; '.join(names)}",
    )
    parser.add_argument("conditions", nargs="*", metavar="CONDITION", help="those to try, again where tried already")
    parser.add_argument("--book", action="store_true", help="build the whole book too, which takes long")
    parser.add_argument("--cuda", action="store_true", help="take builds of PyTorch that bring CUDA along: gigabytes")
    parser.add_argument("--here", metavar="NAME", help="try the environment at hand instead, under this name")
    parser.add_argument(
        "--place", metavar="DIR", type=Path, help="where environments are made, 3 GB each, 8 GB with CUDA"
    )
    parser.add_argument("--check", choices=["import", "compile"], help=argparse.SUPPRESS)
    parser.add_argument("--condition", default="", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.check:
        held = {condition.name: condition for condition in CONDITIONS}
        condition = held.get(given.condition, Condition(given.condition))
        {"import": check_import, "compile": check_compile}[given.check](condition)
        return 0
    unknown = sorted(set(given.conditions) - set(names))
    if unknown:
        parser.error(f"CONDITION must be one of {'; '.join(names)}, got {unknown[0]!r}")
    tried = {name for name, row in read().items() if row["passed"] == "yes"}
    wanted = [
        one for one in CONDITIONS if (one.name in given.conditions if given.conditions else one.name not in tried)
    ]
    if given.here:
        wanted = [Condition(given.here)]
    for condition in wanted:
        row = try_one(condition, here=bool(given.here), book=given.book, cuda=given.cuda, place=given.place)
        write(row)
        print(f"{condition.name}: {row['passed']}. {row['note']}", flush=True)
    return int(any(row["passed"] == "no" for row in read().values()))


if __name__ == "__main__":
    sys.exit(main())
