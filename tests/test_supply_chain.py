"""Every file that is installed is known by its hash, and every package by a licence that goes with the MIT licence."""

from __future__ import annotations

import csv
import re
import subprocess

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from supply_chain import COLUMNS, EXPLAINED, LICENCES, LOCKS, PERMISSIVE, ROOT, installed, licence, parts, read_lock

PACKAGES, TORCH, CPU = (read_lock(LOCKS / f"{name}.txt") for name in ("packages", "torch", "torch-cpu"))
LOCKED = PACKAGES | TORCH


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(one.name): one for one in map(Requirement, (x for x in lines if not x.startswith("#")))}


def rows() -> list[dict[str, str]]:
    with LICENCES.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_locks_hold_the_pinned_set_in_the_pinned_versions():
    pinned = pins()
    assert pinned.keys() <= LOCKED.keys(), f"without hashes: {sorted(pinned.keys() - LOCKED.keys())}"
    different = [name for name in pinned if LOCKED[name][0].specifier != pinned[name].specifier]
    assert not different


def test_what_locks_add_to_the_pinned_set_is_for_other_systems_or_for_the_installation():
    added = {name: LOCKED[name][0].marker for name in LOCKED.keys() - pins().keys()}
    assert {name for name, marker in added.items() if marker is None} <= {"tomlkit"}  # hatchling takes it


def test_every_locked_package_has_hashes_and_none_twice():
    for name, (_, hashes) in (LOCKED | CPU).items():
        assert hashes, name
        assert len(hashes) == len(set(hashes)), name


def test_torch_and_what_its_build_for_cuda_brings_along_stand_apart():
    assert not PACKAGES.keys() & TORCH.keys()
    assert all(re.match(r"torch$|triton$|nvidia-|cuda-", name) for name in TORCH)
    assert not any(re.match(r"torch$|triton$|nvidia-|cuda-", name) for name in PACKAGES)
    assert CPU.keys() == {"torch", "triton"} and CPU["triton"] == TORCH["triton"]
    assert CPU["torch"][0].specifier == TORCH["torch"][0].specifier
    assert not set(CPU["torch"][1]) & set(TORCH["torch"][1]), "a build for CPUs is none of the others"


@pytest.mark.parametrize("text", ["torch>=2", "torch==2.13.0\ntorch==2.13.0", "--index" + "-url x", "a @ file:///b"])
def test_a_lock_of_anything_but_versions_and_hashes_is_refused(tmp_path, text):
    (tmp_path / "lock.txt").write_text(text)
    with pytest.raises(ValueError):
        read_lock(tmp_path / "lock.txt")


@pytest.mark.parametrize(("locked", "last"), [("1", "torch.txt"), ("cpu", "torch-cpu.txt")])
def test_make_installs_by_hash_where_it_is_asked_to(tmp_path, locked, last):
    def commands(*options: str) -> str:
        command = ["make", "--dry-run", f"VENV={tmp_path}/fresh", *options, f"{tmp_path}/fresh/.ready"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "--require-hashes" not in commands() and "--no-deps" not in commands()
    lines = [line for line in commands(f"LOCKED={locked}").splitlines() if "pip install" in line]
    by_hash, own = lines
    assert "--require-hashes --only-binary :all:" in by_hash and by_hash.endswith(f"locks/{last}")
    assert "env -u PIP_CONSTRAINT" in by_hash, "a constraint without hashes"
    assert "--no-build-isolation --no-deps" in own and "'.[book,test]'" in own


def test_the_table_has_every_locked_package_in_its_version():
    held = rows()
    assert tuple(held[0]) == COLUMNS
    versions = {row["package"]: f"=={row['version']}" for row in held}
    assert versions == {name: str(one.specifier) for name, (one, _) in LOCKED.items()}


def test_every_licence_goes_with_the_mit_licence():
    names = {row["package"]: parts(row["licence"]) for row in rows()}
    assert len(names) > 100
    unknown = {package: found for package, found in names.items() if not set(found) <= PERMISSIVE | EXPLAINED.keys()}
    assert not unknown, "neither permissive nor explained"
    used = {name for found in names.values() for name in found}
    assert set(EXPLAINED) <= used, "an explanation of a licence that nothing has"
    module = [row for row in rows() if row["for"] == "the module" and not set(parts(row["licence"])) <= PERMISSIVE]
    assert {row["licence"] for row in module} <= {"MPL-2.0 AND MIT"}  # tqdm's own files


def test_licences_of_what_is_installed_are_those_in_the_table():
    found = {row["package"]: row["licence"] for row in rows()}
    held = {name: installed(name) for name in found}
    here = {name: licence(*metadata) for name, metadata in held.items() if metadata}
    assert len(here) > 50
    assert here == {name: found[name] for name in here}


@pytest.mark.parametrize(
    ("metadata", "texts", "expected"),
    [
        ({"license_expression": "MIT AND PSF-2.0", "license": "other"}, (), "MIT AND PSF-2.0"),
        (
            {"license": "BSD 3-Clause License", "classifier": ["License :: OSI Approved :: BSD License"]},
            (),
            "BSD-3-Clause",
        ),
        ({"license": "Copyright (c) X", "classifier": ["License :: OSI Approved :: BSD License"]}, (), "BSD"),
        ({"license": "Apache 2.0", "classifier": ["License :: Other/Proprietary License"]}, (), "proprietary"),
        ({"classifier": ["License :: OSI Approved"]}, ["Permission is hereby\ngranted, free of charge"], "MIT"),
        ({"license": "All rights reserved"}, (), "none stated"),
    ],
)
def test_a_licence_is_read_from_what_a_package_says(metadata, texts, expected):
    assert licence(metadata, texts) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", ["MIT"]),
        ("Apache-2.0 WITH LLVM-exception AND MIT", ["Apache-2.0 WITH LLVM-exception", "MIT"]),
        ("GPL-3.0 OR MIT", ["MIT"]),
        ("(GPL-3.0 OR LGPL-3.0) AND BSD", ["GPL-3.0", "BSD"]),
    ],
)
def test_an_expression_comes_apart(expression, expected):
    assert parts(expression) == expected
