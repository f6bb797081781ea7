"""Every snippet of docs/testing.md is run, as a test of a project that has only what the page says."""

import re
from pathlib import Path

import pytest

import toska_mesh.testing.mesh
import toska_mesh.testing.registry  # noqa: F401  # stays loaded when the inner run cleans up after itself

pytest_plugins = ["pytester"]

PAGE = Path(__file__).resolve().parents[3] / "docs" / "testing.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_every_snippet_is_a_test_that_passes(pytester: pytest.Pytester, mode: str) -> None:
    assert len(SNIPPETS) >= 6
    ini = f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\n"
    pytester.makefile(".ini", pytest=ini)
    for number, snippet in enumerate(SNIPPETS):
        pytester.makepyfile(**{f"test_snippet_{number}": snippet})
    result = pytester.runpytest_inprocess("-W", "error", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=sum(len(re.findall(r"^async def test_", snippet, re.M)) for snippet in SNIPPETS))
