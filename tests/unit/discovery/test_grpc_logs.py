"""What gRPC logs about callers that have gone, and what has to be seen."""

import logging
from collections.abc import Iterator

import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # where gRPC raises it and logs it

from toska_mesh.discovery.grpc_logs import GRPC_LOGGER, AbandonedCalls


@pytest.fixture
def grpc_log() -> Iterator[logging.Logger]:
    logger, calls = logging.getLogger(GRPC_LOGGER), AbandonedCalls()
    logger.addFilter(calls)
    yield logger
    logger.removeFilter(calls)


def failed(logger: logging.Logger, error: Exception, message: str) -> None:
    try:
        raise error
    except type(error):
        logger.exception(message, "/toskamesh.mesh.Mesh/WaitApplied")


def test_an_answer_that_reached_nobody_is_no_error(grpc_log: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "toska.discovery")
    failed(
        grpc_log,
        cygrpc.ExecuteBatchError("Failed"),
        "ExecuteBatchError raised in core by servicer method [%s]",
    )
    assert [(record.name, record.levelname) for record in caplog.records] == [("toska.discovery", "DEBUG")]


def test_bugs_and_words_without_a_traceback_are_seen_as_ever(
    grpc_log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    failed(grpc_log, ValueError("a bug"), "Unexpected [%s]")
    grpc_log.warning("something else")
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_it_is_the_logger_and_the_error_that_grpc_uses() -> None:
    assert cygrpc._LOGGER.name == GRPC_LOGGER
