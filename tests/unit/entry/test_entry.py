"""The console scripts say what to install when only the SDK is there."""

import importlib
import tomllib
from pathlib import Path

import pytest

from toska_mesh import entry

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_each_script_runs_the_main_of_an_existing_module(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(entry, "run", asked.append)
    getattr(entry, SCRIPTS[script].partition(":")[2])()
    assert callable(importlib.import_module(asked[0]).main)


def test_a_missing_dependency_is_answered_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: str) -> None:
        raise ModuleNotFoundError("No module named 'uvloop'", name="uvloop")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(SystemExit, match=r"uvloop is not installed.*toska-mesh\[server\]"):
        entry.run("toska_mesh.gateway.app")


def test_a_module_of_our_own_that_is_missing_is_a_bug_and_no_hint() -> None:
    with pytest.raises(ModuleNotFoundError):
        entry.run("toska_mesh.no_such_daemon")
