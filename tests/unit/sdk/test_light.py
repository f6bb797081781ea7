"""The SDK costs a service little: what it imports, and what it needs installed."""

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import toska_mesh.sdk

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVER_ONLY = ("aio_pika", "click", "grpc_health", "grpc_reflection", "httptools", "pydantic", "rich", "uvloop")
FRAMEWORKS = ("fastapi", "granian", "pytest", "redis", "starlette", "uvicorn")
HEAVY = (*SERVER_ONLY, *FRAMEWORKS, "aiohttp", "grpc", "jwt", "prometheus_client")

FORBID = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ImportError(f"the SDK must not need {{name}}")
sys.meta_path.insert(0, Forbid())
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_base_dependencies_are_few_and_none_is_of_the_daemons() -> None:
    names = {Requirement(text).name.lower() for text in PROJECT["dependencies"]}
    assert len(names) <= 7
    assert not names & {"aio-pika", "click", "pydantic-settings", "rich", "uvloop"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, json, toska_mesh.sdk; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    assert json.loads(run(code)) == []


@pytest.mark.parametrize("secret", ["", "0123456789abcdefghijklmnopqrstuvwxyz"])
def test_only_a_secret_loads_what_makes_tokens(secret: str) -> None:
    code = (
        "import sys; from toska_mesh.sdk.options import ConnectOptions; from toska_mesh.sdk.tokens import ServiceToken;"
        f"ServiceToken(ConnectOptions(auth_secret={secret!r}), 'orders').current(); print('jwt' in sys.modules)"
    )
    assert run(code).strip() == str(bool(secret))


@pytest.mark.parametrize("home", sorted(set(toska_mesh.sdk._HOMES.values())))
def test_every_public_name_can_be_had_without_the_extras(home: str) -> None:
    names = [name for name, module in toska_mesh.sdk._HOMES.items() if module == home]
    run(FORBID.format(names=(*SERVER_ONLY, *FRAMEWORKS)) + f"from toska_mesh.sdk import {', '.join(names)}")


def test_the_public_names_are_listed_once_and_sorted() -> None:
    assert sorted(set(toska_mesh.sdk.__all__)) == list(toska_mesh.sdk.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = toska_mesh.sdk.no_such_name


def test_type_checkers_are_told_of_the_same_names_in_the_same_places() -> None:
    tree = ast.parse(Path(str(toska_mesh.sdk.__file__)).read_text())
    told = {
        name.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("toska_mesh")
        for name in node.names
    }
    assert told == toska_mesh.sdk._HOMES
