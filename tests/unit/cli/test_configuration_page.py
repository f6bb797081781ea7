"""The configuration reference is made from the models, and is fresh."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from toska_mesh.cli.daemons import DAEMONS, SAMPLE
from toska_mesh.sdk import environment
from toska_mesh.settings import load, variables_of

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_configuration", ROOT / "tools/generate_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_fresh(generator: ModuleType) -> None:
    fresh = generator.page()
    assert (ROOT / "docs/configuration.md").read_text() == fresh, "run tools/generate_configuration.py"


def test_the_page_has_every_variable_and_no_path_of_this_machine(generator: ModuleType) -> None:
    text = generator.page()
    for daemon in (*DAEMONS, SAMPLE):
        for variable in variables_of(daemon.settings):
            assert f"`{variable.name}`" in text
    for variable in environment.variables():
        for name in (variable.name, *variable.also):
            assert f"`{name}`" in text
    assert str(Path.home()) not in text


@pytest.mark.parametrize("daemon", [*DAEMONS, SAMPLE], ids=lambda daemon: daemon.name)
def test_every_variable_says_what_it_means(daemon: object) -> None:
    for variable in variables_of(daemon.settings):  # type: ignore[attr-defined]
        assert variable.description.endswith((".", "…")), variable.name
        assert variable.name == variable.name.upper()


@pytest.mark.parametrize("daemon", [*DAEMONS, SAMPLE], ids=lambda daemon: daemon.name)
def test_the_documented_defaults_can_be_written_down(daemon: object) -> None:
    model = daemon.settings  # type: ignore[attr-defined]
    written = {variable.name: variable.default for variable in variables_of(model)}
    assert load(model, written).settings == load(model, {}).settings
