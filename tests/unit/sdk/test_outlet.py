"""Where a service's log goes when the program has not said."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from toska_mesh.errors import ConfigError
from toska_mesh.sdk.outlet import own_log, program_log

ROOT, OURS = logging.getLogger(), logging.getLogger("toska")


@contextmanager
def nobody_has_set_it_up() -> Iterator[None]:
    """Also not pytest, which does it around every test."""
    before = [(logger, logger.handlers, logger.level) for logger in (ROOT, OURS)]
    for logger, _, _ in before:
        logger.handlers = []
    try:
        yield
    finally:
        for logger, handlers, level in before:
            logger.handlers = handlers
            logger.setLevel(level)


def test_our_lines_get_an_outlet_once_where_there_is_none() -> None:
    with nobody_has_set_it_up():
        own_log()
        own_log()
        assert len(OURS.handlers) == 1
        assert OURS.level == logging.INFO
        assert not ROOT.handlers, "the log of others is their own affair"


def test_a_program_with_logging_of_its_own_keeps_it() -> None:
    handler = logging.NullHandler()
    with nobody_has_set_it_up():
        ROOT.addHandler(handler)
        own_log()
        assert OURS.handlers == []
        with program_log():
            assert ROOT.handlers == [handler]


def test_the_level_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOSKA_LOG_LEVEL", "WARNING")
    with nobody_has_set_it_up():
        own_log()
        assert OURS.level == logging.WARNING


@pytest.mark.parametrize("variable", ["TOSKA_LOG_LEVEL", "TOSKA_LOG_FORMAT"])
def test_a_word_that_is_none_is_refused_with_those_that_are(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "loud")
    with nobody_has_set_it_up(), pytest.raises(ConfigError, match=f"{variable}='loud' is not one of"):
        own_log()


def test_the_programs_log_is_taken_down_at_its_end() -> None:
    with nobody_has_set_it_up():
        with program_log():
            assert len(ROOT.handlers) == 1
            assert ROOT.isEnabledFor(logging.INFO), "the app's own lines are seen too"
        assert ROOT.handlers == []
