"""The manual's table of settings is the one that is read."""

from pathlib import Path

import pytest

from toska_mesh.sdk.environment import Variable
from toska_mesh.sdk.kv.options import VARIABLES

PAGE = Path(__file__).resolve().parents[4] / "docs" / "key-value.md"


def row(variable: Variable) -> str:
    names = "<br>or ".join(f"`{name}`" for name in (variable.name, *variable.also))
    default = f"`{variable.default}`" if variable.default else "empty"
    return f"| {names} | {default} | {variable.expected} | {variable.description} |"


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_every_variable_has_its_row(variable: Variable) -> None:
    assert row(variable) in PAGE.read_text().splitlines()


def test_the_table_has_no_row_beside() -> None:
    settings = PAGE.read_text().partition("## Settings")[2]
    rows = [line for line in settings.splitlines() if line.startswith("| `MESH_KV_")]
    assert rows == list(map(row, VARIABLES))
