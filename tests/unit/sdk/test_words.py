"""What a failed try is called, for people: never with an empty reason."""

from unittest.mock import Mock

import aiohttp
import pytest

from toska_mesh.sdk.transport import _words

KEY = Mock()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "the connection broke: TimeoutError"),
        (aiohttp.ClientPayloadError(), "the connection broke: ClientPayloadError"),
        (ConnectionResetError(104, ""), "the connection broke: Connection reset by peer"),
        (aiohttp.ClientConnectorError(KEY, OSError()), "cannot connect: OSError"),
        (aiohttp.ClientConnectorDNSError(KEY, OSError()), "the registered name has no address: OSError"),
        (aiohttp.ServerDisconnectedError(), "the instance closed the connection"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_failure_has_a_reason(error: Exception, words: str) -> None:
    assert _words(error) == words
