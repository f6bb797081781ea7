"""What `serve` says about mistakes before it serves: one line under the service's name, and exit code 2."""

from typing import Any

import pytest
from aiohttp import web

from toska_mesh.sdk.serving import serve


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "orders", "stategy": "x"}, "orders: stategy is no option; did you mean strategy?"),
        ({"name": "orders", "port": "8000"}, "orders: ServiceOptions.port '8000' (str) is wrong; it should be a whole"),
        ({"name": "orders", "metadata": "foo"}, "orders: ServiceOptions.metadata 'foo' (str) is no mapping"),
        ({"name": "orders", "metadata": {"a": 1}}, "orders: ServiceOptions.metadata has 1 (int) for 'a'"),
        ({"name": "orders", "connect": {"a": 1}}, "orders: ServiceOptions.connect is of type dict"),
        ({"name": "orders", "checks": 5}, "orders: checks=5 should be functions by name"),
        ({"name": "orders", "checks": {5: print}}, "orders: health check 5: give each check a name"),
        ({"name": "orders", "server": "gunicorn"}, "orders: server='gunicorn' is not one of uvicorn, granian"),
        ({"name": 5}, "shop: ServiceOptions.name 5 (int) is wrong; it should be a text"),
        ({"options": "orders"}, "shop: options are ServiceOptions, not 'orders' (str)"),
    ],
)
def test_a_mistake_in_the_call_is_one_line_that_names_it(
    given: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/opt/shop"])
    with pytest.raises(SystemExit) as ended:
        serve(web.Application(), **given)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_the_environments_name_is_in_front_of_what_is_wrong_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_SERVICE_NAME", "orders")
    monkeypatch.setenv("MESH_SERVICE_PORT", "eighty")
    with pytest.raises(SystemExit):
        serve(web.Application())
    assert capsys.readouterr().err.startswith("orders: MESH_SERVICE_PORT='eighty' is wrong")
