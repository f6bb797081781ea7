"""The pytest plugin: fixtures `fake_mesh` and `mesh_registry`, and the marker `virtual_clock`.

Installed with the package it is loaded into every test run there is, so it imports next to nothing, and does nothing to
a test that does not ask: without pytest-asyncio its fixtures only say what is missing.

Which loop a test runs on is decided where it is collected. pytest-asyncio asks the hook `pytest_asyncio_loop_factories`
of any plugin that has it, for every test there is, and takes no "not mine" for an answer; so the hook is there only
while a test that asked for the virtual clock is being collected. The loop is given to that one test (`_for_this_test`):
otherwise pytest-asyncio would set up anew what other tests of the run share for a session.
"""

import inspect
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from toska_mesh.testing.clock import VirtualLoop

MARKER = "virtual_clock"
LIMIT_SECONDS = 3600.0
"""An hour of the virtual clock; a test that is not done by then waits for something that never comes. Beside a mesh's
beats and probes that takes a second to find out."""

_CLOCK_FIXTURE = "_toska_mesh_virtual_clock"
"""What `fake_mesh` uses. Its own name would not do: a project may have a fixture of that name."""
_REGISTRY_FIXTURE = "_toska_mesh_real_sockets"
"""What `mesh_registry` uses, for the same reason."""
_LOOP_HOOK = "pytest_asyncio_loop_factories"
_SHOWN_EVENTS = 200
REPORT = pytest.StashKey[Any]()
"""On a test that uses a fake mesh: the mesh, whose history goes into the report when the test fails."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(limit_seconds={LIMIT_SECONDS:g}): run the async test on a clock that jumps to the next timer, "
        "so that it takes no time; past limit_seconds of that clock it fails",
    )
    if hasattr(config.hook, _LOOP_HOOK):
        from toska_mesh.testing import fixtures
    else:
        from toska_mesh.testing import fixtures_missing as fixtures  # type: ignore[no-redef]
    config.pluginmanager.register(fixtures, "toska_mesh_fixtures")


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, None, None]:
    definition = metafunc.definition
    if not _asks_for_virtual_clock(definition, metafunc.fixturenames):
        yield
        return
    _run_with_asyncio(definition)
    with _loop_hook(metafunc.config, _limit_of(definition)), _for_this_test(metafunc):
        yield


@pytest.hookimpl(wrapper=True, trylast=True)  # inside of pytest-asyncio's, which looks for its own marker
def pytest_pycollect_makeitem() -> Generator[None, Any, Any]:
    made = yield
    for node in made if isinstance(made, list) else [made]:
        if not isinstance(node, pytest.Function):
            continue
        if _asks_for_virtual_clock(node, node.fixturenames):
            _run_with_asyncio(node)
        elif _is_left_to_us(node):
            node.add_marker(pytest.mark.asyncio)
    return made


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, Any, Any]:
    try:
        return (yield)
    except RuntimeError as exc:
        if type(exc).__name__ != "StuckError":  # by name: the class is not loaded in runs that do not need it
            raise
        raise pytest.fail.Exception(str(exc), pytrace=False) from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    mesh = item.stash.get(REPORT, None)
    if mesh is not None and report.failed:
        report.sections.append(("What happened in the fake mesh", mesh.history(_SHOWN_EVENTS)))
    return report


def _asks_for_virtual_clock(node: pytest.Function, fixture_names: list[str]) -> bool:
    if not hasattr(node.config.hook, _LOOP_HOOK) or not _is_async(node.obj):
        return False
    return node.get_closest_marker(MARKER) is not None or _CLOCK_FIXTURE in fixture_names


def _is_left_to_us(node: pytest.Function) -> bool:
    """An async test of `mesh_registry` that says nothing about loops: in strict mode nobody would run it."""
    if _REGISTRY_FIXTURE not in node.fixturenames or not _is_async(node.obj):
        return False
    return node.get_closest_marker("asyncio") is None


def _is_async(function: Any) -> bool:
    inner = getattr(getattr(function, "hypothesis", None), "inner_test", None)  # of a property
    return inspect.iscoroutinefunction(inner or function)


def _run_with_asyncio(node: pytest.Item) -> None:
    """Strict mode leaves async tests without its marker alone; and a virtual clock belongs to one test."""
    node.add_marker(pytest.mark.asyncio(loop_scope="function"), append=False)


def _limit_of(node: pytest.Item) -> float | None:
    marker = node.get_closest_marker(MARKER)
    if marker is None:
        return LIMIT_SECONDS
    unknown = sorted(set(marker.kwargs) - {"limit_seconds"})
    limit = marker.kwargs.get("limit_seconds", LIMIT_SECONDS)
    is_number = limit is None or (isinstance(limit, int | float) and limit > 0)
    if marker.args or unknown or not is_number:
        raise pytest.UsageError(
            f"{node.nodeid}: {MARKER} takes limit_seconds, a number above 0 or None for no limit; "
            f"got {MARKER}{marker.args or ''}{marker.kwargs or ''}"
        )
    return None if limit is None else float(limit)


@contextmanager
def _loop_hook(config: pytest.Config, limit_seconds: float | None) -> Generator[None, None, None]:
    hook = _LoopHook(limit_seconds)
    config.pluginmanager.register(hook)
    try:
        yield
    finally:
        config.pluginmanager.unregister(hook)


class _LoopHook:
    def __init__(self, limit_seconds: float | None) -> None:
        self._limit_seconds = limit_seconds

    @pytest.hookimpl(tryfirst=True)
    def pytest_asyncio_loop_factories(self) -> Mapping[str, "partial[VirtualLoop]"]:
        from toska_mesh.testing.clock import VirtualLoop

        return {"virtual": partial(VirtualLoop, self._limit_seconds)}


@contextmanager
def _for_this_test(metafunc: pytest.Metafunc) -> Generator[None, None, None]:
    """Let the loop be a plain parameter of the test.

    pytest-asyncio parametrizes a fixture of the session with it, indirectly. From one test to the next that fixture
    would then change its value, and with it would go every runner and every fixture that tests share for a session.
    """
    parametrize = metafunc.parametrize

    def directly(names: Any, values: Any, *args: Any, **kwargs: Any) -> None:
        is_the_loop = kwargs.get("indirect") is True and any(isinstance(value, partial) for value in values)
        parametrize(names, values, *args, **(kwargs | {"indirect": False} if is_the_loop else kwargs))

    metafunc.parametrize = directly  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        metafunc.parametrize = parametrize  # type: ignore[method-assign]
