"""The mesh as somebody meets it who has only read its name."""

import pydoc

import pytest
from tests.unit.sdk.scripted_calls import ScriptedSource

from toska_mesh.sdk.client import Client
from toska_mesh.sdk.mesh import Mesh
from toska_mesh.sdk.options import ConnectOptions
from toska_mesh.sdk.transport import Answer


def closed() -> Mesh:
    return Mesh(ConnectOptions(), source=ScriptedSource())


async def test_a_mesh_that_is_not_open_says_how_it_is_opened() -> None:
    mesh = closed()
    with pytest.raises(RuntimeError, match="async with"):
        mesh.client("orders")
    with pytest.raises(RuntimeError, match="async with"):
        mesh.grpc_channel("orders")
    with pytest.raises(RuntimeError, match="async with"):
        mesh.explain("orders")
    with pytest.raises(RuntimeError, match="async with"):
        await mesh.pick("orders")
    with pytest.raises(RuntimeError, match="async with"):
        await mesh.known("orders")
    assert repr(mesh) == "<Mesh by discovery, closed>"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Mesh, ["async with Mesh", 'mesh.client("orders"', "UpstreamError"]),
        (Client, ["await client.get", "UpstreamError", "timeout_seconds"]),
        (Answer, ["mesh_instance", "attempts", "ClientResponseError"]),
    ],
)
def test_help_says_what_it_is_for(kind: type, words: list[str]) -> None:
    text = pydoc.plain(pydoc.render_doc(kind))
    for word in words:
        assert word in text
    for internal in ("belongs_to", "on_over", "drop("):
        assert internal not in text
