"""The repository's own promises: commands, versions and texts that the documentation relies on."""

import importlib
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = (ROOT / "constraints.txt").read_text()

TARGETS = ("help", "install", "run", "test", "test-unit", "check", "format", "proto", "bench", "constraints", "clean")


def repository_files() -> list[Path]:
    """Files that are in the repository, or would be with the next commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def pinned() -> dict[str, Version]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", CONSTRAINTS, re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in found}


def test_make_alone_prints_every_target_with_a_text() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    shown = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=30, env=environment)
    listed = dict(re.findall(r"^  (\S+) +(\S.*)$", shown.stdout, re.MULTILINE))
    assert set(TARGETS) <= set(listed)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert set(listed) == set(phony[1].split())


@pytest.mark.parametrize("name", sorted(PROJECT["project"]["scripts"]))
def test_console_script_leads_to_a_callable(name: str) -> None:
    module, _, attribute = PROJECT["project"]["scripts"][name].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def requirements() -> list[str]:
    extras = PROJECT["project"]["optional-dependencies"]
    return [
        *PROJECT["project"]["dependencies"],
        *(text for extra in extras.values() for text in extra),
        *PROJECT["build-system"]["requires"],
    ]


@pytest.mark.parametrize("text", requirements())
def test_constraints_hold_a_version_within_the_range_of(text: str) -> None:
    requirement = Requirement(text)
    assert requirement.specifier.contains(pinned()[canonicalize_name(requirement.name)])


def test_constraints_hold_a_hash_for_everything_and_no_address() -> None:
    entries = re.split(r"^(?=\S+==)", CONSTRAINTS, flags=re.MULTILINE)[1:]
    assert len(entries) == len(pinned())
    for entry in entries:
        assert "--hash=sha256:" in entry, entry.splitlines()[0]
    requirement_lines = [line for line in CONSTRAINTS.splitlines() if not line.lstrip().startswith("#")]
    for line in requirement_lines:
        assert re.fullmatch(r"|[A-Za-z0-9._-]+==\S+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
    assert "://" not in CONSTRAINTS


# Written in pieces, so that this file does not contain what it looks for.
MACHINE_PATHS = re.compile(
    "|".join(("/" + "work/main", "/" + "work/shared", "/" + "root/", "/" + "opt/" + "pypi", "/" + "tmp/toska/"))
)


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    found = []
    for path in repository_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}"
            for number, line in enumerate(text.splitlines(), start=1)
            if MACHINE_PATHS.search(line)
        ]
    assert found == []


def test_ci_runs_the_checks_and_all_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[-2:] == ["make check", "make test"]


def test_no_test_is_skipped() -> None:
    """A skipped test is one that nobody notices missing."""
    pattern = re.compile(r"pytest\.(skip|importorskip|xfail)\(|mark\.(skip|skipif|xfail)\b")
    found = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("*.py")
        if path != Path(__file__).resolve() and pattern.search(path.read_text())
    ]
    assert found == []
