"""The README and the pages under `docs/` tell the truth as far as a test can see it."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from toska_mesh.cli.daemons import DAEMONS, SAMPLE
from toska_mesh.settings import variables_of

ROOT = Path(__file__).resolve().parent.parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
KNOWN = {
    name
    for daemon in (*DAEMONS, SAMPLE)
    for variable in variables_of(daemon.settings)
    for name in (variable.name, *variable.also)
}
# Names that the pages mention because they are not ours: Kubernetes' service links.
FOREIGN = {"GATEWAY_PORT_5000_TCP", "GATEWAY_SERVICE_HOST"}
# A name space is written with a star or a trailing underscore.
VARIABLE = re.compile(
    r"\b(?:GATEWAY|DISCOVERY|HEALTHMONITOR|REGISTRY|JWT|DASHBOARD|MESH_SERVICE_AUTH)_[A-Z0-9_]*[A-Z0-9]\b(?!_?\*)"
)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_settings_that_exist(page: Path) -> None:
    named = set(VARIABLE.findall(page.read_text()))
    assert not named - KNOWN - FOREIGN


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    missing = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert not missing


def test_the_example_in_the_readme_prints_what_it_says() -> None:
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [snippet for snippet in snippets if "print(" in snippet]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "README.md", "exec"), {})
    promised = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert said.getvalue().split() == promised


def test_the_readme_shows_the_shortest_example_as_it_is() -> None:
    example = (ROOT / "examples" / "hello.py").read_text()
    assert f"```python\n{example}```" in (ROOT / "README.md").read_text()
    assert len(example.splitlines()) <= 10


def test_the_snippets_about_the_sdk_run_one_after_the_other() -> None:
    """All but what stands under `__main__` is executed: names, options and signatures are those that there are."""
    space: dict[str, object] = {"__name__": "docs"}
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sdk.md").read_text(), re.DOTALL)
    for number, code in enumerate(snippets):
        exec(compile(code, f"sdk.md, snippet {number}", "exec"), space)
    assert {"hello", "main", "order", "database", "buy", "talk"} <= set(space)


def test_the_readme_uses_only_targets_that_the_makefile_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert used <= targets
