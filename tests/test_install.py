"""Which interpreter `make install` takes, and what its setup file promises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import espnet_smoe

ROOT = Path(__file__).resolve().parent.parent


def find_python(path: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run the finder with ``path`` before the system's own tools."""
    return subprocess.run(
        ["/bin/bash", ROOT / "tools/find_python.sh"],
        env={"PATH": f"{path}:/no/such", "HOME": str(path), **environment},
        capture_output=True,
        text=True,
    )


def put(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_a_name_on_path_that_does_not_run_is_passed_over(tmp_path):
    put(tmp_path / "python3.13", "exit 127")
    put(tmp_path / "python3.12", "echo 12 /works")
    process = find_python(tmp_path)
    assert (process.returncode, process.stdout) == (0, "/works\n")


def test_the_newest_that_works_is_taken_wherever_it_is(tmp_path):
    put(tmp_path / "python3", "echo 12 /older")
    put(tmp_path / ".pyenv/versions/3.13.0/bin/python", "echo 13 /newest")
    assert find_python(tmp_path).stdout == "/newest\n"
    put(tmp_path / "python3", "echo 13 /first")
    put(tmp_path / ".pyenv/versions/3.12.1/bin/python", "echo 12 /older")
    assert find_python(tmp_path).stdout == "/first\n"


def test_the_choice_of_the_user_wins_over_a_newer_one(tmp_path):
    put(tmp_path / "python3.13", "echo 13 /newest")
    put(tmp_path / "mine", "echo 12 /mine")
    assert find_python(tmp_path, PYTHON=str(tmp_path / "mine")).stdout == "/mine\n"


def test_this_interpreter_is_accepted(tmp_path):
    process = find_python(tmp_path, PYTHON=sys.executable)
    assert process.returncode == 0, process.stderr
    version = subprocess.run(
        [process.stdout.strip(), "--version"], capture_output=True, text=True
    )
    assert version.stdout.split()[1] == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize("environment", [{}, {"PYTHON": "/no/such/python"}])
def test_no_interpreter_is_one_sentence_and_status_1(tmp_path, environment):
    # a Python too old for us runs the probe and prints nothing
    put(tmp_path / "python3", "exit 0")
    process = find_python(tmp_path, **environment)
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1
    assert "3.12" in process.stderr


def test_setup_reads_the_version_of_the_package_without_importing_it():
    process = subprocess.run(
        [sys.executable, "-I", "setup.py", "--version", "--quiet"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "/no/such"},
        capture_output=True,
        text=True,
    )
    assert process.stdout.split()[-1] == espnet_smoe.__version__


def test_every_package_that_is_imported_is_required():
    """A name that only another requirement brings in breaks with that one."""
    text = (ROOT / "setup.py").read_text("utf-8")
    required = {
        name.replace("-", "_") for name in re.findall(r'"([a-z-]+)(?:\[\w+\])?>=', text)
    }
    names = {"pyyaml": "yaml", "espnet": "espnet2"}
    known = {names.get(name, name) for name in required}
    imported = set()
    for source in (ROOT / "espnet_smoe").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"espnet_smoe"}
    assert third_party <= known
