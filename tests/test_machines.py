"""The script that tries other machines: what it makes of a command, a condition and a table; and what it found."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import machines
import pytest
import tiny_sweep
import torch
from machines import CONDITIONS, TABLE, Condition, Failed, Untried

from isa import engine
from isa._compiled import Compiled
from isa.engine import train
from isa.run import Run

RUN = Run(dataset="cars3d", model="small", latent_dim=3, batch_size=16, precision="fp32", steps=3)
NAMES = {condition.name: condition for condition in CONDITIONS}


# --- what it found ----------------------------------------------------------------------------------------------------


def test_a_step_is_not_compiled_where_the_compiler_cannot_be_imported(monkeypatch, caplog):
    """As in a locale without UTF-8, in which PyTorch cannot read files of its own."""
    monkeypatch.setitem(sys.modules, "torch._inductor.compile_fx", None)
    original = engine.losses
    monkeypatch.setattr(engine, "losses", lambda *arguments: original(*arguments))  # one that was not compiled before
    result = train(RUN, dataset=tiny_sweep.DATASET, compile=True, evaluation=False, progress=False)
    assert result.record["compiled"] is False and result.record["status"] == "trained"
    (message,) = [record.message for record in caplog.records if record.name.startswith("isa")]
    assert message.startswith("the step runs uncompiled: import of torch._inductor.compile_fx halted")


@pytest.mark.parametrize("error", [UnicodeDecodeError("ascii", b"\xe2", 0, 1, "no"), OSError(), ImportError("gone")])
def test_a_block_is_not_compiled_where_the_compiler_cannot_read_its_files(monkeypatch, caplog, error):
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(torch, "compile", fail)
    block = Compiled(lambda value: (value + 1,), "the sum")
    assert block(torch.ones(2))[0].tolist() == [2, 2] == block(torch.ones(2))[0].tolist()
    (message,) = [record.message for record in caplog.records]
    assert message.startswith("the sum runs uncompiled: ") and not message.endswith(": ")


# --- the script -------------------------------------------------------------------------------------------------------


def run(condition: Condition, tmp_path: Path, code: str) -> str:
    home = tmp_path / "home"
    env = machines.surroundings(condition, home)
    status, printed = machines.run(condition, [sys.executable, "-c", code], cwd=tmp_path, env=env, home=home)
    assert status == 0, printed
    return printed.replace("\r\n", "\n").strip()


TERMINALS = "import sys; print([s.isatty() for s in (sys.stdin, sys.stdout, sys.stderr)], sys.stdout.encoding.lower())"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Python 3.11", "[True, True, True] utf-8"), ("no terminal, locale C", "[False, False, False] ascii")],
)
def test_streams_are_terminals_or_not(tmp_path, name, expected):
    assert run(NAMES[name], tmp_path, TERMINALS) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no choice of cores on this system")
def test_one_core_is_one_core(tmp_path):
    cores = "import os; print(len(os.sched_getaffinity(0)))"
    assert run(NAMES["one core"], tmp_path, cores) == "1"


def test_without_a_compiler_other_programs_are_still_found(tmp_path):
    code = "import shutil; print(*[bool(shutil.which(name)) for name in ('sh', 'git', 'g++', 'gcc', 'cc', 'clang')])"
    assert run(NAMES["no C++ compiler"], tmp_path, code) == "True True False False False False"


@pytest.mark.parametrize("name", ["g++", "x86_64-linux-gnu-gcc-12", "clang++-19", "c++", "cc", "gcc-12.2"])
def test_compilers_are_left_out(name):
    assert machines.COMPILERS.fullmatch(name)


@pytest.mark.parametrize("name", ["gccmakedep", "ccache-swig", "accept", "clang-format", "python3", "git"])
def test_other_programs_are_not(name):
    assert not machines.COMPILERS.fullmatch(name)


def can_mount() -> bool:
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    try:
        command = ["unshare", *own, "--mount", "sh", "-c", "mount --make-rprivate /"]
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_mount(), reason="no name space of its own for mounts")
def test_nothing_but_the_home_folder_can_be_written_to(tmp_path):
    code = (
        "import pathlib, tempfile; pathlib.Path.home().joinpath('a').touch(); print(tempfile.mkstemp()[1])\n"
        "for place in (pathlib.Path.cwd(), pathlib.Path(tempfile.__file__).parent, pathlib.Path('/')):\n"
        "    try: (place / 'b').touch()\n"
        "    except OSError as error: print(error.strerror)"
    )
    first, *rest = run(NAMES["no write permission beside the cache"], tmp_path, code).splitlines()
    assert first.startswith(str(tmp_path / "home"))
    assert rest == ["Read-only file system"] * 3
    assert not (tmp_path / "b").exists()


def test_last_words_are_the_error_without_places():
    printed = "reading\r\nTraceback:\r\n  File x\r\nValueError: cannot read /some/where/else/file.txt\r\nbye\r\n"
    assert machines.last_words(printed) == "ValueError: cannot read file.txt"
    assert machines.last_words("\n") == "it said nothing"
    assert machines.last_words("one\ntwo\n") == "two"


def test_checks_stop_at_the_first_that_fails(tmp_path):
    checks = {"good": "{python} -c pass", "bad": "{python} -c import(nothing)", "never": "{python} -c pass"}
    options = {"clone": tmp_path, "python": sys.executable, "home": tmp_path / "a home"}
    with pytest.raises(Failed, match=r"^bad ends with 1: SyntaxError: .* \(ran: good, bad\)$"):
        machines.check(Condition("x"), checks, **options)
    names, note = machines.check(Condition("x"), {"good": "{python} -c pass"}, **options | {"home": tmp_path / "b"})
    assert names == ["good"] and note == ""


def test_a_row_is_written_whole_and_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "TABLE", tmp_path / "machines.csv")
    empty = dict.fromkeys(machines.COLUMNS, "")
    for name, passed in (("here", "yes"), ("one core", "no"), ("Python 3.11", "yes"), ("one core", "yes")):
        machines.write(empty | {"condition": name, "passed": passed})
    assert [(name, row["passed"]) for name, row in machines.read().items()] == [
        ("Python 3.11", "yes"),
        ("one core", "yes"),
        ("here", "yes"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["machines.csv"]


def test_what_passed_is_not_tried_again_unless_named(tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "TABLE", tmp_path / "machines.csv")
    tried = []

    def pretend(condition: Condition, **options: object) -> dict[str, object]:
        tried.append(condition.name)
        return dict.fromkeys(machines.COLUMNS, "") | {"condition": condition.name, "passed": "yes"}

    monkeypatch.setattr(machines, "try_one", pretend)
    assert machines.main(["one core"]) == 0
    assert machines.main([]) == 0
    assert tried == ["one core", *(name for name in NAMES if name != "one core")]
    assert machines.main(["one core"]) == machines.main([]) == 0
    assert tried[len(NAMES) :] == ["one core"]
    with pytest.raises(SystemExit):
        machines.main(["two cores"])


def test_what_cannot_be_had_is_said_and_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "interpreters", lambda version: [])
    row = machines.try_one(Condition("old", python="2.7"), here=False, book=False, cuda=False, place=tmp_path)
    assert (row["passed"], row["note"]) == ("not tried", "no Python 2.7 found")
    monkeypatch.setattr(machines, "interpreters", lambda version: [sys.executable])

    def refuse(*arguments: object) -> str:
        raise Untried("no build for CPUs at hand")

    monkeypatch.setattr(machines, "build_of_torch", refuse)
    row = machines.try_one(Condition("new", python="3.99"), here=False, book=False, cuda=False, place=tmp_path)
    assert (row["python"], row["passed"], row["note"]) == ("3.99", "not tried", "no build for CPUs at hand")


def test_this_python_is_found_by_its_version():
    version = ".".join(map(str, sys.version_info[:2]))
    found = machines.interpreters(version)
    for path in found:
        asked = subprocess.run([path, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True)
        assert asked.stdout.strip() == str(sys.version_info[:2])
    assert machines.interpreters("1.5") == []


@pytest.mark.skipif(not TABLE.exists(), reason="nothing is recorded yet")
def test_no_recorded_machine_failed():
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == machines.COLUMNS
    assert {row["passed"] for row in rows} <= {"yes", "not tried"}, [row["note"] for row in rows]
    assert any(row["passed"] == "yes" for row in rows)
