"""The fixtures in a run without pytest-asyncio: they say what is missing."""

from typing import Never

import pytest

_ADVICE = (
    "the fixtures of toska_mesh need pytest-asyncio 1.4 or newer: install `toska-mesh[testing]`, and do not switch it "
    "off with `-p no:asyncio`"
)


@pytest.fixture
def fake_mesh() -> Never:
    """Needs pytest-asyncio."""
    pytest.fail(_ADVICE, pytrace=False)


@pytest.fixture
def mesh_registry() -> Never:
    """Needs pytest-asyncio."""
    pytest.fail(_ADVICE, pytrace=False)
