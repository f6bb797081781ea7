"""Where an instance speaks gRPC."""

import pytest
from tests.unit.router.build import instance

from toska_mesh.sdk.grpc_channel import grpc_endpoint


def test_at_the_port_that_its_metadata_names() -> None:
    assert grpc_endpoint(instance("a", grpc_port="9090")).port == 9090


@pytest.mark.parametrize("text", ["", "0", "65536", "0000809999", "9" * 5000, "-1", "٣٠٠٠", "90.5"])
def test_at_its_own_where_the_metadata_names_none(text: str) -> None:
    own = instance("a")
    assert grpc_endpoint(instance("a", grpc_port=text)) == own.endpoint
