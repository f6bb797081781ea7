"""What `serve` and `join` take where nothing is said."""

import pytest

from toska_mesh.errors import ConfigError
from toska_mesh.sdk.defaults import chosen_options
from toska_mesh.sdk.options import ServiceOptions


@pytest.mark.parametrize(
    ("environ", "overrides", "port"),
    [
        pytest.param({}, {}, 0, id="any free one"),
        pytest.param({"MESH_SERVICE_PORT": "9090"}, {}, 9090, id="the environment's"),
        pytest.param({"Mesh__Service__Port": "9091"}, {}, 9091, id="as .NET names it"),
        pytest.param({"MESH_SERVICE_PORT": "9090"}, {"port": 7000}, 7000, id="code before environment"),
        pytest.param({}, {"port": 8080}, 8080, id="the default, said on purpose"),
        pytest.param({"MESH_SERVICE_PORT": "tcp://10.0.0.1:80"}, {}, 0, id="a link that Kubernetes injects"),
    ],
)
def test_the_port_is_what_was_said_or_any_free_one(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], overrides: dict[str, int], port: int
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert chosen_options(None, overrides).port == port


def test_options_are_taken_as_they_are() -> None:
    options = ServiceOptions(name="orders")
    assert chosen_options(options, {}) is options


def test_options_and_single_ones_beside_them_would_contradict_each_other() -> None:
    with pytest.raises(TypeError, match="name should be said in them"):
        chosen_options(ServiceOptions(), {"name": "orders"})


def test_a_name_in_the_place_of_the_options_is_told_how_to_be_given() -> None:
    with pytest.raises(ConfigError, match=r'not .orders. .*name="orders"'):
        chosen_options("orders", {})  # type: ignore[arg-type]
