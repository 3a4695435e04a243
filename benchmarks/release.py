"""Checks that are run before a release, and write the tables that the page *Reproducing* shows.

::

    python benchmarks/release.py machines ["one core" ...]   # in fresh environments: runs/machines.csv
    python benchmarks/release.py reproduce                   # what is the same every time: runs/reproducibility.csv
    python benchmarks/release.py licences                    # of all locked packages: runs/licences.csv
    python benchmarks/release.py lock                        # hashes of the pinned set, by uv: locks/

All work on clones of the last commit. ``machines`` makes an environment of several gigabytes for each machine.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
RUNS, LOCKS = ROOT / "runs", ROOT / "locks"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
COLUMNS = {
    "machines": ("condition", "python", "torch", "ran", "passed", "note", "platform", "commit"),
    "reproducibility": (
        *("what", "condition", "equal", "difference", "median", "compared", "steps", "platform", "torch", "commit"),
    ),
    "licences": ("package", "version", "licence", "for"),
}


def read_table(name: str) -> list[dict[str, str]]:
    """Return the rows of a table in ``runs/``."""
    path = RUNS / f"{name}.csv"
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []


def write_table(name: str, rows: Iterable[Mapping[str, object]], key: tuple[str, ...]) -> None:
    """Write a table in ``runs/``, where rows replace those with the same values of the key's columns."""
    both = {tuple(row[column] for column in key): row for row in [*read_table(name), *rows]}
    with open(RUNS / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS[name], lineterminator="\n")
        writer.writeheader()
        writer.writerows(both.values())


def git(*words: object, folder: Path = ROOT) -> str:
    """Run git in a folder and return what it prints."""
    return subprocess.run(["git", *words], cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def clone(path: Path, commit: str) -> Path:
    """Make a fresh clone of the tree at a commit."""
    git("clone", "--quiet", "--no-checkout", ROOT, path)
    git("checkout", "--quiet", "--detach", commit, folder=path)
    return path


# --- machines ---------------------------------------------------------------------------------------------------------

READ_ONLY = """
mount --make-rprivate / && mount --bind "$HOME" "$HOME" || exit 125
for place in / /tmp /home /var/tmp; do mount -o remount,bind,ro "$place" 2>/dev/null; done
touch "$HOME/written" && ! touch "$PWD/written" 2>/dev/null || exit 125
exec "$@"
"""
"""In a name space of its own, every file system is read-only but for the home folder."""
UNSHARE = ("unshare", *(() if os.geteuid() == 0 else ("--map-root-user",)), "--mount", "sh", "-c", READ_ONLY, "sh")
PLAIN = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
OLDEST_TORCH = next(text.removeprefix("torch>=") for text in PROJECT["dependencies"] if text.startswith("torch>="))


@dataclass(frozen=True)
class Machine:
    """One kind of machine, as far as a fresh environment can stand in for it."""

    name: str
    python: str = ""  # version; the running one by default
    torch: str = ""  # what pip is asked for instead of the pinned version
    locked: bool = False  # installed by hash
    folder: str = "clone"
    compiler: bool = True
    prefix: tuple[str, ...] = ()  # command that runs the checks
    environment: Mapping[str, str] = field(default_factory=dict)


MACHINES = (
    Machine("Python 3.11", python="3.11"),
    Machine("Python 3.12", python="3.12"),
    Machine("Python 3.13", python="3.13"),
    Machine("the oldest PyTorch allowed", torch=f"torch=={OLDEST_TORCH}.*"),
    Machine("the newest PyTorch", torch="torch"),
    Machine("installed by hash", locked=True),
    Machine("no C++ compiler", compiler=False),
    Machine("one core", prefix=("taskset", "--cpu-list", str(min(os.sched_getaffinity(0))))),
    Machine("no write permission beside the cache", prefix=UNSHARE),
    Machine("a path with spaces and non-ASCII characters", folder="Räume für β"),
    Machine("no terminal, locale C", environment=PLAIN),
)

CHECKS = {
    "import": "python -c 'import platform, torch, isa; isa.isa_prior((2, 1)).log_prob(torch.zeros(3)); "
    "print(platform.python_version(), torch.__version__, isa.__file__)'",
    "command line": "isa status runs/dsprites.yaml --device cpu",
    "images": "isa data dsprites --verify",
    "sweep": 'python tests/tiny_sweep.py sweep "$HOME/tiny.yaml" --device cpu',
    "tests": "python -m pytest -n 0 -q -p no:cacheprovider tests/test_prior_density.py tests/test_mig.py",
    "page": 'papermill book/prior/functions.ipynb "$HOME/page.ipynb"',
}
"""Commands that are run in a clone, in this order."""

SPEC = """\
title: Runs that take milliseconds; the step of the last is compiled
every: {dataset: cars3d, model: small, latent_dim: 3, batch_size: 16, precision: fp32}
tiers:
  1:
    - {objective: beta-vae, beta: [1, 4], steps: 6, seeds: 2}
    - {objective: isa-vae, subspaces: [2, 1], steps: 6, seeds: 1}
  2:
    - {objective: isa-vae, subspaces: [2, 1], steps: 300, seeds: 1}
"""


def install(machine: Machine, python: str, path: Path, commit: str) -> Path:
    """Clone the tree and let ``make`` install the pinned set; returns the folder of programs."""
    clone(path, commit)
    if machine.torch:
        pins = (path / "constraints.txt").read_text(encoding="utf-8").splitlines()
        others = [line for line in pins if not re.match(r"(torch|triton|setuptools)==|nvidia-|cuda-", line)]
        (path / "constraints.txt").write_text("\n".join([*others, machine.torch]) + "\n", encoding="utf-8")
    ours = ("MAKE", "MFLAGS", "PIP_CONSTRAINT", "PIP_BUILD", "PYTHON", "VENV", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    options = [f"PYTHON={python}", *["LOCKED=cpu"] * machine.locked]
    subprocess.run(["make", *options, ".venv/.ready"], cwd=path, env=env, check=True, stdin=subprocess.DEVNULL)
    return path / ".venv" / "bin"


def check(machine: Machine, path: Path, programs: Path, home: Path) -> dict[str, str]:
    """Run the checks in a clone; return the cells of a row."""
    (home / "tmp").mkdir(parents=True)
    (home / "tiny.yaml").write_text(SPEC, encoding="utf-8")
    search = [str(programs), *[os.environ["PATH"]] * machine.compiler]
    env = {"HOME": home, "TMPDIR": home / "tmp", "ISA_CACHE_DIR": home / "cache", "LANG": "C.UTF-8"}
    env = {name: str(value) for name, value in env.items()} | {"PATH": os.pathsep.join(search)} | machine.environment
    prefix = [shutil.which(word) or word for word in machine.prefix[:1]] + list(machine.prefix[1:])
    row = {"passed": "yes", "note": ""}
    for number, (name, command) in enumerate(CHECKS.items(), 1):
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run([*prefix, "/bin/sh", "-c", command], cwd=path, env=env, **streams)
        lines = done.stdout.decode("utf-8", "replace").strip().splitlines() or [""]
        row["ran"] = ", ".join(list(CHECKS)[:number])
        if done.returncode:
            return row | {"passed": "no", "note": f"{name} ends with {done.returncode}: {lines[-1]:.200}"}
        if name == "import":
            row["python"], row["torch"], where = lines[-1].split(maxsplit=2)
            assert Path(where).is_relative_to(path), f"another copy is imported: {where}"
        if name == "sweep":
            reasons = [line.split("runs uncompiled: ")[1] for line in lines if "runs uncompiled: " in line]
            row["note"] = f"the step ran uncompiled: {reasons[0].strip()}" if reasons else "the step was compiled"
    return row


def machines(names: list[str]) -> None:
    """Try machines, by default those that have not passed."""
    passed = {row["condition"] for row in read_table("machines") if row["passed"] == "yes"}
    commit, system = git("rev-parse", "HEAD"), f"{platform.system()} {platform.machine()}"
    for machine in [m for m in MACHINES if (m.name in names if names else m.name not in passed)]:
        row = {"condition": machine.name, "python": machine.python, "torch": machine.torch, "platform": system}
        python = shutil.which(f"python{machine.python}") if machine.python else sys.executable
        if python is None:
            row |= {"passed": "not tried", "note": f"no Python {machine.python} found"}
        else:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                path = Path(folder).resolve() / machine.folder
                row |= check(machine, path, install(machine, python, path, commit), path.with_name("home"))
        write_table("machines", [row | {"commit": commit}], key=("condition",))
        print(f"{machine.name}: {row['passed']}. {row['note']}", flush=True)


# --- reproducibility --------------------------------------------------------------------------------------------------

PAGES = ("book/fig1.ipynb", "book/prior/functions.ipynb", "book/prior/sampling.ipynb")
STEPS = 30
AGAIN, SEED = "the same again, in a second clone", "another seed, for comparison"
ELSEWHERE = {"TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"}
OTHER_KERNELS = {
    "oneDNN's kernels for AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "MKL's kernels for any processor": {"MKL_CBWR": "COMPATIBLE"},
    "PyTorch's kernels without vector instructions": {"ATEN_CPU_CAPABILITY": "default"},
}
OLDER = {name: value for settings in OTHER_KERNELS.values() for name, value in settings.items()}
OLDER["NPY_DISABLE_CPU_FEATURES"] = " ".join(np._core._multiarray_umath.__cpu_dispatch__)

CONDITIONS: dict[str, tuple[dict[str, str], dict[str, object]]] = {
    AGAIN: (ELSEWHERE, {}),
    "two threads": ({"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}, {}),
    "a compiled step": ({}, {"compile": True}),
    "in a pack of two runs": ({}, {"pack": True}),
    **{name: (settings, {}) for name, settings in OTHER_KERNELS.items()},
    "an older processor, by all three and the least that NumPy runs on": (OLDER, {}),
    SEED: ({}, {"seed": 1}),
}
"""Environment variables, and options of :func:`measure`, under which everything is done again."""


def measure(target: str, compile: bool = False, pack: bool = False, seed: int = 0) -> None:
    """Train the networks of A.4 for a few steps, draw images, and write all numbers to a file."""
    from isa import data
    from isa.data.faces3d import draw_faces
    from isa.engine import train_pack
    from isa.run import Run

    grid = {"scale": [0, 5], "orientation": range(0, 40, 8), "x": range(0, 32, 4), "y": range(0, 32, 4)}
    dataset = data.load("dsprites").restrict(**grid)
    angles = [-40.0, 0.0, 25.0]
    numbers = {
        "images of dsprites": dataset.storage.numpy(),
        "images of faces3d": draw_faces(np.linspace(-1, 1, 42).reshape(2, 21), angles, [10.0], angles),
    }
    for precision in ("fp32", "bf16"):
        options = {"objective": "isa-vae", "steps": STEPS, "batch_size": 128, "seed": seed, "precision": precision}
        runs = [Run(**options), *[Run(beta=2.0, **options)] * pack]
        result = train_pack(runs, dataset=dataset, device="cpu", compile=compile, progress=False)[0]
        assert result.record["compiled"] == compile, "the step was to be compiled, and was not"
        vectors = [value.detach().float().numpy().ravel() for value in result.model.state_dict().values()]
        numbers[f"parameters, {precision}"] = np.concatenate(vectors)
        numbers[f"first loss, {precision}"] = result.curve["loss"][:1]
        for name in ("log_likelihood", "mig"):
            numbers[f"{name}, {precision}"] = np.array([result.record[name]])
    np.savez(target, **numbers)


def differences(first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the absolute differences of two arrays, relative to the largest absolute value in them."""
    first, other = first.astype(np.float64), other.astype(np.float64)
    return np.abs(first - other) / (max(np.abs(first).max(), np.abs(other).max()) or 1)


def compare(first: Path, other: Path) -> Iterator[dict[str, object]]:
    """Yield rows on the arrays in two folders of :func:`work_in`, and on records and figures where they have any."""
    with np.load(first / "numbers.npz") as arrays, np.load(other / "numbers.npz") as others:
        for name, array in arrays.items():
            relative = differences(array, others[name])
            yield {
                "what": name,
                "equal": array.tobytes() == others[name].tobytes(),
                "difference": f"{relative.max():.2g}",
                "median": f"{np.median(relative):.2g}" if name.startswith("parameters") else "",
                "compared": f"{array.size:,} number{'s' * (array.size != 1)}",
                "steps": STEPS if name.endswith(("fp32", "bf16")) else "",
            }
    if (other / "tiny.csv").exists():
        runs = records(first / "tiny.csv")
        same = runs == records(other / "tiny.csv")
        yield {"what": "records of a sweep", "equal": same, "compared": f"{len(runs)} runs"}
        drawn, again = figures(first), figures(other)
        for suffix, what in ((".csv", "numbers of figures"), (".svg", "figures as SVG"), (".png", "figures as PNG")):
            same = [drawn.get(name) == again.get(name) for name in drawn | again if name.endswith(suffix)]
            yield {"what": what, "equal": all(same), "compared": f"{sum(same)} of {len(same)} equal"}


def records(path: Path) -> list[dict[str, str]]:
    """Return the records of a sweep without times."""
    rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    return sorted(({k: v for k, v in row.items() if "seconds" not in k} for row in rows), key=lambda row: row["hash"])


def figures(folder: Path) -> dict[str, str]:
    """Return the figures of the executed notebooks in a folder, by file name."""
    kinds = {"csv": "text/csv", "svg": "image/svg+xml", "png": "image/png"}
    files = {}
    for cell in [cell for path in folder.glob("*.ipynb") for cell in json.loads(path.read_text("utf-8"))["cells"]]:
        name = cell["metadata"].get("mystnb", {}).get("figure", {}).get("name")
        for data in [output.get("data", {}) for output in cell.get("outputs", ()) if name]:
            files |= {f"{name}.{suffix}": "".join(data[kind]) for suffix, kind in kinds.items() if kind in data}
    return files


def work_in(path: Path, target: Path, environment: Mapping[str, str], options: dict, *, more: bool) -> None:
    """Fill a folder in a clone: numbers; with more, the records of a small sweep and executed pages too."""
    target.mkdir()
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": f"{path}{os.pathsep}{path}/book"}

    def call(*command: object) -> None:
        words = [sys.executable, *map(str, command)]
        subprocess.run(words, cwd=path, env=env | environment, check=True, stdout=subprocess.DEVNULL)

    call(path / "benchmarks" / "release.py", "measure", json.dumps({"target": f"{target}/numbers.npz"} | options))
    if more:
        (target / "tiny.yaml").write_text(SPEC, encoding="utf-8")
        call(path / "tests" / "tiny_sweep.py", "sweep", target / "tiny.yaml", "--device", "cpu", "--tier", 1)
        for page in PAGES:
            call("-m", "papermill", "--no-progress-bar", "--log-level", "ERROR", page, target / Path(page).name)


def reproduce() -> None:
    """Measure what is the same every time in two clones."""
    import torch

    commit = git("rev-parse", "HEAD")
    where = f"{platform.system()} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        first, second = (clone(work / name, commit) for name in ("first", "second"))
        work_in(first, work / "0", {}, {}, more=True)
        for number, (condition, (environment, options)) in enumerate(CONDITIONS.items(), 1):
            target, more = work / str(number), environment in (ELSEWHERE, OLDER)
            work_in(second if condition == AGAIN else first, target, environment, options, more=more)
            circumstances = {"condition": condition, "platform": where, "torch": torch.__version__, "commit": commit}
            rows = [row | circumstances for row in compare(work / "0", target)]
            for row in rows:
                row["equal"] = "yes" if row["equal"] else "no"
                print(f"{condition}: {row['what']}: equal: {row['equal']} {row.get('difference', '')}", flush=True)
            write_table("reproducibility", rows, key=("what", "condition"))


# --- hashes and licences ----------------------------------------------------------------------------------------------

CPU_BUILDS = {
    # of the wheel that this edition was tested with
    "3.11": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    # as several public projects have them in their own locks; not installed for the tests of this edition
    "3.12": "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
    "3.13": "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
}
"""SHA-256 of torch 2.13.0+cpu for Linux on x86-64, by Python: PyTorch publishes these builds apart from the others."""
OF_TORCH = re.compile(r"torch$|triton$|nvidia-|cuda-")
"""Names of PyTorch and of what only its build for CUDA brings along."""

PERMISSIVE = {"0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0"}
PERMISSIVE |= {"CC0-1.0", "ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Public Domain", "Zlib"}
"""Licences that ask for no more than that their text is kept where their code is."""
EXPLAINED = {"MPL-2.0", "GPL", "none stated", "proprietary"}
"""Licences that ask for more; the page *Reproducing* says why this project may be under the MIT licence anyway."""
SPDX = {
    "Apache-2.0": ("apache 2.0", "apache license 2.0", "apache software license"),
    "BSD": ("bsd", "bsd license"),
    "BSD-3-Clause": ("bsd 3-clause", "bsd 3-clause license"),
    "GPL": ("gnu general public license (gpl)", "gpl-2.0-only"),
    "ISC": ("isc license", "isc license (iscl)"),
    "MIT": ("mit license",),
    "MPL-2.0": ("mozilla public license 2.0 (mpl 2.0)",),
    "PSF-2.0": ("python software foundation license",),
    "Public Domain": ("public domain",),
    "proprietary": (
        *("other/proprietary license", "nvidia proprietary software"),
        *("licenseref-nvidia-proprietary", "licenseref-nvidia-software-license"),
    ),
}
NAMES = {text: name for name, texts in SPDX.items() for text in texts}


def read_lock(name: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Return the requirement and the SHA-256 hashes of each package in a list of ``locks/``, by canonical name."""
    packages: dict[str, tuple[Requirement, list[str]]] = {}
    text = re.sub(r"#.*|\\\n", "", (LOCKS / name).read_text(encoding="utf-8"))
    for line in filter(str.strip, text.splitlines()):
        requirement, *hashes = re.split(r"\s+--hash=sha256:", line.strip())
        package = canonicalize_name(Requirement(requirement).name)
        assert package not in packages and all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in hashes), line
        packages[package] = Requirement(requirement), hashes
    return packages


def lock() -> None:
    """Resolve the pinned set for all systems by uv and write the lists of hashes."""
    with tempfile.TemporaryDirectory() as folder:
        build, target = Path(folder) / "build.in", Path(folder) / "all.txt"
        build.write_text("hatchling\neditables\n", encoding="utf-8")  # what the installation itself takes
        options = ["--all-extras", "--universal", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
        where = ["--constraint", "constraints.txt", "--python-version", "3.11", "--output-file", target]
        subprocess.run(["uv", "pip", "compile", "pyproject.toml", build, *options, *where], cwd=ROOT, check=True)
        blocks = re.findall(r"^\S.*(?:\n[ ]+--hash=\S+.*)+", target.read_text(encoding="utf-8"), re.MULTILINE)
    by_name = {canonicalize_name(re.match(r"[\w.-]+", block)[0]): block for block in sorted(blocks)}
    version = re.match(r"torch==[\w.]+", by_name["torch"])[0]
    files = {
        "packages.txt": [block for name, block in by_name.items() if not OF_TORCH.match(name)],
        "torch.txt": [block for name, block in by_name.items() if OF_TORCH.match(name)],
        "torch-cpu.txt": [
            f"# PyTorch's builds without CUDA for Linux on x86-64 and Python {', '.join(CPU_BUILDS)}, in this order.",
            "# That for 3.11 is the one that was tested with. pip has to be told where PyTorch publishes them.",
            " \\\n".join([version, *(f"    --hash=sha256:{digest}" for digest in CPU_BUILDS.values())]),
            by_name["triton"],  # the tests take it without CUDA, too
        ],
    }
    made = "# Made by `python benchmarks/release.py lock`: exact versions, with the hashes of all files of each.\n"
    for name, lines in files.items():
        (LOCKS / name).write_text(made + "\n".join(lines) + "\n", encoding="utf-8")


def licence(metadata: Mapping[str, object], texts: Iterable[str] = ()) -> str:
    """Return the licence that a package's metadata (in JSON) states, or else its licences' texts; SPDX if possible."""
    if expression := metadata.get("license_expression"):
        return NAMES.get(str(expression).lower(), str(expression))
    marks = [str(mark).split(" :: ") for mark in metadata.get("classifier") or ()]
    kinds = [mark[-1] for mark in marks if mark[0] == "License" and mark[-1] != "OSI Approved"]
    kinds = sorted({NAMES.get(kind.lower(), kind) for kind in kinds})
    stated = str(metadata.get("license") or "").strip()
    stated = NAMES.get(stated.lower(), stated)
    if "proprietary" in (stated, *kinds):  # the stricter of the two, where they differ
        return "proprietary"
    if stated and set(parts(stated)) <= PERMISSIVE | EXPLAINED:
        return stated
    if kinds:
        return " AND ".join(kinds)
    granted = any(re.search(r"Permission\s+is\s+hereby\s+granted,\s+free\s+of\s+charge", text) for text in texts)
    return "MIT" if granted else "none stated"


def parts(expression: str) -> list[str]:
    """Return the licences that an expression names; of alternatives, the first that is permissive where one is."""
    names = []
    for term in re.split(r"\s+AND\s+", re.sub(r"[()]", " ", expression).strip()):
        choices = [choice.strip() for choice in re.split(r"\s+OR\s+", term)]
        names.append(next((choice for choice in choices if choice in PERMISSIVE), choices[0]))
    return names


@cache
def installed() -> dict[str, importlib.metadata.Distribution]:
    """Return the packages that are installed here, by canonical name."""
    return {canonicalize_name(package.name): package for package in importlib.metadata.distributions()}


def statements(package: importlib.metadata.Distribution) -> tuple[dict[str, object], list[str]]:
    """Return the metadata of a package and the texts of its licences, for :func:`licence`."""
    files = [path for path in package.files or () if re.search(r"licen[cs]e|copying", path.name, re.IGNORECASE)]
    texts = [path.locate().read_text(encoding="utf-8", errors="replace") for path in files if path.locate().is_file()]
    return package.metadata.json, texts


def needed(extra: str) -> set[str]:
    """Return the names of all installed packages that ``isa`` with an extra needs on this system, itself included."""
    todo, seen = {(PROJECT["name"], extra)}, set()
    while todo:
        name, extra = package = todo.pop()
        seen.add(package)
        for need in map(Requirement, installed()[name].requires or ()):
            other = canonicalize_name(need.name)
            if other in installed() and (need.marker is None or need.marker.evaluate({"extra": extra})):
                todo |= {(other, extra) for extra in ("", *need.extras)} - seen
    return {name for name, _ in seen}


def licences() -> None:
    """Write the licences of everything that is locked; rows of what is not installed here are kept."""
    locked = read_lock("packages.txt") | read_lock("torch.txt")
    rows = {row["package"]: row for row in read_table("licences") if row["package"] in locked}
    extras = {"": "the module", "book": "the book", "test": "tests", "cluster": "clusters"}
    purposes = {purpose: needed(extra) for extra, purpose in extras.items()}
    for name in locked.keys() & installed():
        purpose = next((words for words, names in purposes.items() if name in names), "installing")
        if OF_TORCH.match(name) and name != "torch":
            purpose = "PyTorch's build for CUDA"
        version, stated = installed()[name].version.partition("+")[0], licence(*statements(installed()[name]))
        rows[name] = {"package": name, "version": version, "licence": stated, "for": purpose}
    (RUNS / "licences.csv").unlink(missing_ok=True)
    write_table("licences", [rows[name] for name in sorted(rows)], key=("package",))
    for name, (requirement, _) in locked.items():
        if f"=={rows.get(name, {}).get('version')}" != str(requirement.specifier):
            print(f"{requirement}: not installed here, so add its licence to runs/licences.csv by hand")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Checks before a release; without a command, the first three.")
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("machines", help="try fresh environments")
    command.add_argument("names", nargs="*", metavar="MACHINE", choices=[[], *(machine.name for machine in MACHINES)])
    commands.add_parser("reproduce", help="measure what is the same every time")
    commands.add_parser("licences", help="write the licences of all locked packages")
    commands.add_parser("lock", help="write the hashes of the pinned set")
    commands.add_parser("measure").add_argument("options", type=json.loads)
    match (given := parser.parse_args()).command:
        case "machines":
            machines(given.names)
        case "measure":
            measure(**given.options)
        case "reproduce" | "licences" | "lock" as name:
            globals()[name]()
        case None:
            machines([])
            reproduce()
            licences()


if __name__ == "__main__":
    main()
