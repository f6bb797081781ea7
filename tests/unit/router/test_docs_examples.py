"""The examples of the router's page run as they stand."""

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[3] / "docs" / "router.md"


def test_every_example_of_the_page_runs_as_it_stands() -> None:
    """In one namespace, top to bottom, as a reader would paste them."""
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    examples = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(examples) == text.count("```python")
    for example in examples:
        line = text[: example.start(1)].count("\n")
        exec(compile("\n" * line + example[1], str(PAGE), "exec"), names)
    assert "decisions" in names
