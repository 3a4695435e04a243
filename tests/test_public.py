"""README, metadata, licences, hooks and workflows agree with the repository, and the wheel works outside it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_sweep import write_spec

import isa
from edition import stats
from isa.sweep import Spec, sweep

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CODEMETA = json.loads((ROOT / "codemeta.json").read_text(encoding="utf-8"))
JSON_LD = json.loads((ROOT / "book/_ext/templates/metadata.json").read_text(encoding="utf-8"))["@graph"]
SPECS = {"dsprites": (1.0, 2.0, 3.0), "dsprites-long": (1.0,)}  # the weights beta of each


def results() -> str:
    """Return the README's table of results, from the records."""
    heads = [f"{what}, {name}" for what in ("MIG", "log-likelihood") for name in ("β-VAE", "ISA-VAE")]
    lines = [["β", "steps", "n", *heads, "difference in MIG"], ["---:"] * 8]
    for name, betas in SPECS.items():
        spec = Spec.read(ROOT / "runs" / f"{name}.yaml")
        for beta in betas:
            grids = [spec.grid(objective=one, beta=[beta], seeds=50, named=True) for one in ("beta-vae", "isa-vae")]
            groups = [sweep(grid, budget=0).select(status="trained") for grid in grids]
            migs, fits = ([[row[key] for row in rows] for rows in groups] for key in ("mig", "log_likelihood"))
            change = stats.compare(*migs)
            sizes = ", ".join(map(str, dict.fromkeys(map(len, groups))))
            (steps,) = {row["total_steps"] for rows in groups for row in rows}
            interval = f"{change.difference:+.3f} ({change.low:+.2f} to {change.high:+.2f})"
            means = [f"{np.mean(x):.3f}" for x in migs] + [f"{np.mean(x):.1f}" for x in fits]
            lines.append([f"{beta:g}", f"{steps:,}", sizes, *means, interval])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return re.sub(r"-(?=\d)", "−", text)


def test_readme_has_the_results_of_the_records():
    assert results() in README, f"README.md needs this table:\n{results()}"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_named_files_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    names = re.findall(r"\]\(([^:)#]+)\)", text) + re.findall(r"\b(?:book|isa|runs|tests)/[\w/.-]*\w/?", text)
    assert len(names) > 5 and not [name for name in names if not (ROOT / name).exists()]


def test_readme_code_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code, training = code.split("images = load", 1)
    exec(code, {})  # without the data and the training, which take minutes
    assert "train(Run(" in training


def test_metadata_agree():
    assert CODEMETA["name"] == PROJECT["name"] and CODEMETA["version"] == CITATION["version"] == isa.__version__
    for key in ("description", "keywords"):
        assert CODEMETA[key] == PROJECT[key]
    assert CODEMETA["runtimePlatform"] == f"Python {PROJECT['requires-python']}"
    assert CODEMETA["license"].endswith(f"/{PROJECT['license']}")
    assert [author["name"] for author in CODEMETA["author"]] == [author["name"] for author in PROJECT["authors"]]
    paper, (article, *ours) = CITATION["preferred-citation"], JSON_LD
    assert paper["title"] == article["headline"] == CODEMETA["referencePublication"]["name"]
    assert paper["url"] == article["@id"] == CODEMETA["referencePublication"]["@id"]
    assert (str(paper["year"]), str(paper["start"]), str(paper["end"]), str(paper["volume"])) == (
        *(article[key] for key in ("datePublished", "pageStart", "pageEnd")),
        article["isPartOf"]["volumeNumber"],
    )
    names = [(author["given-names"], author["family-names"]) for author in paper["authors"]]
    assert names == [(author["givenName"], author["familyName"]) for author in article["author"]]
    assert {part["license"] for part in ours} == {"https://creativecommons.org/licenses/by/4.0/"}
    assert f"## [{isa.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", ["README.md", "CITATION.cff", "_config.yml", "book/index.ipynb"])
def test_both_licences_are_stated(place):
    text = (ROOT / place).read_text(encoding="utf-8")
    assert "MIT" in text and re.search(r"CC[- ]BY[- ]4\.0", text)


def test_commits_are_checked_by_the_commands_of_make_lint():
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in config["repos"][0]["hooks"]}
    assert hooks == set(re.findall(r"\$\(BIN\)/(\w+)", lint))


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflow_calls_targets_that_exist(path):
    (job,) = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    targets = [step["run"].removeprefix("make ") for step in job["steps"] if "run" in step]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets and all(re.search(rf"^{target}: ", makefile, re.MULTILINE) for target in targets)
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)


PRIOR = "import isa; print(isa.__file__); print(isa.isa_prior((2, 1)).sample((5,)).shape)"
COMPUTE_NODE = """import sys; sys.path.insert(0, sys.argv[1])
sys.modules |= dict.fromkeys("autograd dask distributed IPython jupyter_book myst_nb papermill sphinx".split())
import tiny_sweep; sys.exit(tiny_sweep.cli.main(sys.argv[2:]))"""  # without what book, toys and clusters need


@pytest.mark.slow
def test_wheel_works_outside_the_repository(tmp_path):
    def call(*words: object, **variables: str) -> str:
        env = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}  # a relative path
        env |= {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"} | variables
        done = subprocess.run([*map(str, words)], cwd=tmp_path, env=env, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT, PYTHONPATH="")
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    assert sdist.name == f"isa_vae-{isa.__version__}.tar.gz"
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(["git", "ls-files", "isa"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert packed == set(tracked.split()), "the module, all of it, and nothing else"
    call(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)

    place, shape = call(sys.executable, "-c", PRIOR).splitlines()
    assert Path(place).is_relative_to(tmp_path) and shape == "torch.Size([5, 3])"
    program = tmp_path / "site" / "bin" / "isa"
    assert "sweep" in call(program, "--help")
    factors = np.indices((4, 5, 6)).reshape(3, -1).T
    codes = {"mean": factors / 2, "log_var": np.full(factors.shape, -3.0), "factors": factors}
    np.savez(tmp_path / "codes.npz", **codes)
    assert "MIG" in call(program, "mig", "codes.npz")
    spec = write_spec(tmp_path / "runs")
    call(sys.executable, "-c", COMPUTE_NODE, ROOT / "tests", "sweep", spec, "--device", "cpu", "--tier", 1)
    assert len(spec.with_suffix(".csv").read_text(encoding="utf-8").splitlines()) == 5
