"""The plugin in a project of somebody else: a folder of its own, run by a pytest of its own.

Most run in this process: what they import is here already, so each takes a moment and not seconds.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import toska_mesh.testing.mesh
import toska_mesh.testing.registry  # noqa: F401  # stays loaded when the inner runs clean up after themselves

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[3]
STRICT = "[pytest]\nasyncio_default_fixture_loop_scope = function\n"
AUTO = STRICT + "asyncio_mode = auto\n"

HANDLER = """
import asyncio
import pytest
import pytest_asyncio

def hello(request):
    return "hello"
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `tests` with warnings as errors; `ini` is the project's pytest.ini."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(tests: str, *arguments: str, ini: str = STRICT, is_apart: bool = False) -> pytest.RunResult:
        pytester.makefile(".ini", pytest=ini)
        pytester.makepyfile(test_theirs=HANDLER + tests)
        arguments = ("-W", "error", "--strict-markers", "-p", "no:cacheprovider", *arguments)
        if is_apart:
            return pytester.runpytest_subprocess(*arguments, timeout=60)
        return pytester.runpytest_inprocess(*arguments)

    return run


@pytest.mark.parametrize("ini", [STRICT, AUTO], ids=["strict", "auto"])
def test_a_test_that_asks_for_a_fake_mesh_gets_one_and_a_virtual_clock(run: Run, ini: str) -> None:
    result = run(
        """
async def test_it(fake_mesh):
    stock = fake_mesh.add_service("stock", hello, instances=2)
    stock[0].down()
    await fake_mesh.clock.advance(600)
    async with fake_mesh.client() as mesh:
        assert (await mesh.client("stock").get("/")).status == 200
    assert asyncio.get_running_loop().time() > 600

@pytest.mark.parametrize("name", ["a", "b"])
async def test_several(fake_mesh, name):
    fake_mesh.add_service(name, hello)
""",
        "-v",
        ini=ini,
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*::test_it PASSED*", "*::test_several[[]a[]] PASSED*"])


@pytest.mark.parametrize("ini", [STRICT, AUTO], ids=["strict", "auto"])
def test_the_marker_alone_brings_the_virtual_clock_to_tests_and_their_fixtures(run: Run, ini: str) -> None:
    result = run(
        """
@pytest_asyncio.fixture
async def waited():
    await asyncio.sleep(100)
    return asyncio.get_running_loop()

@pytest.mark.virtual_clock
async def test_it(waited):
    assert waited is asyncio.get_running_loop()
    await asyncio.sleep(1000)
    assert waited.time() == 1100

@pytest.mark.virtual_clock
class TestAll:
    async def test_method(self):
        await asyncio.sleep(1000)

    def test_plain(self):
        pass
""",
        ini=ini,
    )
    result.assert_outcomes(passed=3)


def test_tests_that_do_not_ask_keep_their_loop_and_their_shared_fixtures(run: Run) -> None:
    result = run(
        """
import time
ups = []

@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def database():
    ups.append(asyncio.get_running_loop())
    yield ups[-1]

@pytest.mark.asyncio(loop_scope="session")
async def test_before(database):
    assert asyncio.get_running_loop() is database

@pytest.mark.virtual_clock
async def test_virtual():
    assert asyncio.get_running_loop().time() == 0

@pytest.mark.asyncio(loop_scope="session")
async def test_after(database):
    assert asyncio.get_running_loop() is database
    assert ups == [database]

@pytest.mark.asyncio
async def test_plain():
    assert type(asyncio.get_running_loop()).__name__ != "VirtualLoop"

def test_sync():
    pass
"""
    )
    result.assert_outcomes(passed=5)


def test_a_project_may_have_loops_of_its_own(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
import asyncio

class OwnLoop(asyncio.SelectorEventLoop):
    pass

def pytest_asyncio_loop_factories(config, item):
    return {"own": OwnLoop}
"""
    )
    result = run(
        """
@pytest.mark.asyncio
async def test_own():
    assert type(asyncio.get_running_loop()).__name__ == "OwnLoop"

@pytest.mark.virtual_clock
async def test_virtual():
    assert type(asyncio.get_running_loop()).__name__ == "VirtualLoop"
"""
    )
    result.assert_outcomes(passed=2)


def test_fixtures_of_the_same_name_are_the_projects_own(run: Run) -> None:
    result = run(
        """
@pytest.fixture
def fake_mesh():
    return "theirs"

@pytest_asyncio.fixture
async def mesh_registry():
    return "theirs"

@pytest.mark.asyncio
async def test_it(fake_mesh, mesh_registry):
    assert fake_mesh == mesh_registry == "theirs"
    assert type(asyncio.get_running_loop()).__name__ != "VirtualLoop"

def test_sync(fake_mesh):
    assert fake_mesh == "theirs"
"""
    )
    result.assert_outcomes(passed=2)


def test_fixtures_may_be_built_on_it(run: Run) -> None:
    result = run(
        """
@pytest_asyncio.fixture
async def stock(fake_mesh):
    await asyncio.sleep(100)
    return fake_mesh.add_service("stock", hello)

async def test_it(stock):
    assert asyncio.get_running_loop().time() == 100
    assert stock[0].is_up
"""
    )
    result.assert_outcomes(passed=1)


def test_a_default_loop_scope_of_the_session_is_no_hindrance(run: Run) -> None:
    result = run(
        """
async def test_it(fake_mesh):
    fake_mesh.add_service("stock", hello)

async def test_other():
    pass
""",
        ini=AUTO + "asyncio_default_test_loop_scope = session\n",
    )
    result.assert_outcomes(passed=2)


def test_a_wait_for_nothing_fails_at_once_and_says_where(run: Run) -> None:
    result = run(
        """
async def answer():
    await asyncio.Event().wait()

@pytest.mark.virtual_clock
async def test_it():
    try:
        await answer()
    finally:
        print("closed what was open")

async def test_beside_a_mesh(fake_mesh):
    fake_mesh.add_service("stock", hello)
    async with fake_mesh.client() as mesh:
        await mesh.known("stock")
        await answer()
"""
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "this test waits for something that never comes: no timer is set and nothing is ready",
            "*Task-* waits at test_theirs.py:* test_it > test_theirs.py:* answer > locks.py:* wait",
            "*closed what was open*",
            "this test waits for something that never comes: 3600 s of its clock have passed*",
            "*What happened in the fake mesh*",
            "    0.000 s  registered   stock-1              as stock at 10.1.1.1:8080",
        ]
    )
    assert "base_events.py" not in result.stdout.str()


def test_the_limit_can_be_another(run: Run) -> None:
    result = run(
        """
@pytest.mark.virtual_clock(limit_seconds=10)
async def test_less():
    await asyncio.sleep(11)

@pytest.mark.virtual_clock(limit_seconds=None)
async def test_none():
    await asyncio.sleep(1e8)
"""
    )
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*10 s of its clock have passed*"])


@pytest.mark.parametrize("arguments", ["5", "limit=5", "limit_seconds=0", "limit_seconds='5'"])
def test_a_wrong_marker_is_explained(run: Run, arguments: str) -> None:
    result = run(f"@pytest.mark.virtual_clock({arguments})\nasync def test_it():\n    pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*test_it: virtual_clock takes limit_seconds, a number above 0 or None*"])


def test_a_failing_test_shows_what_happened(run: Run) -> None:
    result = run(
        """
async def test_it(fake_mesh):
    stock = fake_mesh.add_service("stock", hello)
    fake_mesh.schedule(2, stock[0].down)
    await fake_mesh.clock.advance(3)
    assert stock[0].is_up
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*What happened in the fake mesh*", "*registered*stock-1*", "    2.000 s  down         stock-1"]
    )


def test_a_test_that_is_not_async_is_told_what_to_do(run: Run) -> None:
    result = run("def test_it(fake_mesh):\n    pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*use the fixture fake_mesh in an `async def` test*"])


def test_the_registry_on_a_port_is_there_in_both_modes_and_not_on_a_virtual_clock(run: Run) -> None:
    result = run(
        """
import urllib.request

@pytest.mark.asyncio
async def test_it(mesh_registry):
    await mesh_registry.register("orders", 8081)
    assert len(await mesh_registry.instances("orders")) == 1
    asked = f"{mesh_registry.url}/v1/status/leader"
    assert (await asyncio.to_thread(urllib.request.urlopen, asked)).status == 200

@pytest.mark.virtual_clock
async def test_virtual(mesh_registry):
    pass
"""
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*mesh_registry has real sockets and needs the real clock*"])


@pytest.mark.parametrize("ini", [STRICT, AUTO], ids=["strict", "auto"])
def test_an_async_test_of_the_registry_needs_no_marker(run: Run, ini: str) -> None:
    result = run(
        """
@pytest_asyncio.fixture
async def stocked(mesh_registry):
    await mesh_registry.register("stock", 8081)
    return mesh_registry

async def test_it(mesh_registry):
    assert await mesh_registry.instances("stock") == ()

async def test_through_a_fixture_of_theirs(stocked):
    assert len(await stocked.instances("stock")) == 1

class TestMore:
    async def test_method(self, stocked):
        assert stocked.is_running
""",
        ini=ini,
    )
    result.assert_outcomes(passed=3)


def test_other_async_tests_are_not_marked(run: Run) -> None:
    result = run(
        """
async def test_it():
    pass

def test_registry_and_sync(mesh_registry):
    assert mesh_registry.is_running
"""
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*async def functions are not natively supported*"])


def test_it_works_under_xdist(run: Run) -> None:
    result = run(
        """
@pytest.mark.parametrize("number", range(4))
async def test_it(fake_mesh, number):
    fake_mesh.add_service("stock", hello)
""",
        "-n",
        "2",
        is_apart=True,
    )
    result.assert_outcomes(passed=4)


def test_without_pytest_asyncio_only_who_asks_is_told(run: Run) -> None:
    result = run(
        "def test_plain():\n    pass\n\ndef test_it(fake_mesh):\n    pass\n",
        "-p",
        "no:asyncio",
        ini="[pytest]\n",
        is_apart=True,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*need pytest-asyncio 1.4 or newer: install `toska-mesh[[]testing]`*"])


def loaded(code: str) -> set[str]:
    """Modules in a fresh interpreter after `code`."""
    script = f"import sys\n{code}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_plugin_alone_loads_next_to_nothing() -> None:
    new = loaded("import pytest, toska_mesh.testing.plugin") - loaded("import pytest")
    assert {name for name in new if name.startswith("toska_mesh")} == {
        "toska_mesh",
        "toska_mesh.testing",
        "toska_mesh.testing.plugin",
    }
    assert not new & {"asyncio", "aiohttp", "grpc", "pytest_asyncio", "pydantic", "uvloop"}


@pytest.mark.parametrize("name", ["FakeMesh", "EmbeddedRegistry"])
def test_what_tests_need_is_in_the_extra(name: str) -> None:
    new = loaded(f"from toska_mesh.testing import {name}")
    assert not new & {"aio_pika", "click", "httptools", "pydantic", "pydantic_settings", "rich", "uvicorn", "uvloop"}
    assert "aiohttp" in new
