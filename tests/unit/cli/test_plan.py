"""What `toska up` decides before it starts anything."""

from pathlib import Path

import pytest

from toska_mesh.cli.daemons import DAEMONS, SAMPLE, value_of
from toska_mesh.cli.plan import Options, Plan, make_plan
from toska_mesh.cli.supervisor import ProcessSpec
from toska_mesh.errors import ConfigError
from toska_mesh.settings import load

DATA = Path("/data")


def plan(consul: str = "", rabbitmq: str = "", with_samples: bool = True, **environ: str) -> Plan:
    return make_plan(Options(DATA, consul, rabbitmq, with_samples), environ)


def names(of: Plan) -> list[list[str]]:
    return [[spec.name for spec in stage] for stage in of.stages]


def spec(of: Plan, name: str) -> ProcessSpec:
    return next(spec for stage in of.stages for spec in stage if spec.name == name)


def problems(**environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(**environ)
    return str(caught.value)


def test_the_registry_comes_first_and_the_samples_last() -> None:
    assert names(plan()) == [["registry"], ["discovery", "healthmonitor", "gateway"], ["hello-1", "hello-2"]]


def test_samples_leave_first_the_gateway_drains_and_the_registry_goes_last() -> None:
    assert plan().stop_order == (
        ("hello-1", "hello-2"),
        ("gateway",),
        ("discovery",),
        ("healthmonitor",),
        ("registry",),
    )


@pytest.mark.parametrize(
    ("consul", "environ"),
    [
        pytest.param("http://consul:8500", {}, id="by the option"),
        pytest.param("", {"CONSUL_ADDRESS": "http://consul:8500"}, id="by our variable"),
        pytest.param("", {"CONSUL_HTTP_ADDR": "http://consul:8500"}, id="by Consul's variable"),
        pytest.param("http://consul:8500", {"CONSUL_ADDRESS": "http://other:1"}, id="the option wins"),
    ],
)
def test_a_consul_replaces_the_embedded_registry(consul: str, environ: dict[str, str]) -> None:
    made = plan(consul, **environ)
    assert names(made)[0] == ["discovery", "healthmonitor", "gateway"]
    assert "REGISTRY_PORT" not in {use.variable for use in made.ports}
    assert spec(made, "gateway").environ["CONSUL_ADDRESS"] == "http://consul:8500"
    assert ("Consul", "http://consul:8500") in made.links


def test_without_a_consul_everybody_speaks_to_the_embedded_registry() -> None:
    made = plan(REGISTRY_PORT="8600")
    for name in ("gateway", "discovery", "healthmonitor"):
        assert spec(made, name).environ["CONSUL_ADDRESS"] == "http://127.0.0.1:8600"


def test_settings_for_another_registry_do_not_reach_the_embedded_one() -> None:
    made = plan(CONSUL_HTTP_SSL="true", CONSUL_NAMESPACE="team", CONSUL_HTTP_TOKEN="t", REGISTRY_TOKEN="own")
    environ = spec(made, "gateway").environ
    assert "CONSUL_HTTP_SSL" not in environ
    assert "CONSUL_NAMESPACE" not in environ
    assert environ["CONSUL_HTTP_TOKEN"] == "own"
    kept = plan("http://consul:8500", CONSUL_HTTP_TOKEN="t", CONSUL_NAMESPACE="team")
    assert spec(kept, "gateway").environ["CONSUL_HTTP_TOKEN"] == "t"
    assert spec(kept, "gateway").environ["CONSUL_NAMESPACE"] == "team"


def test_a_broker_is_told_to_those_who_publish_and_its_password_to_nobody_else() -> None:
    made = plan(rabbitmq="amqp://user:secret@rabbit:5672/")
    assert spec(made, "discovery").environ["RABBITMQ_URL"] == "amqp://user:secret@rabbit:5672/"
    assert spec(made, "healthmonitor").environ["RABBITMQ_URL"] == "amqp://user:secret@rabbit:5672/"
    assert ("events", "amqp://***@rabbit:5672/") in made.links


def test_samples_can_be_left_out() -> None:
    made = plan(with_samples=False)
    assert names(made)[-1] == ["discovery", "healthmonitor", "gateway"]
    assert made.try_url == made.try_line == ""


def test_the_line_to_try_leads_through_the_gateway() -> None:
    made = plan()
    assert made.try_line == "curl http://localhost:5000/api/hello/hello"
    assert made.try_url == "http://127.0.0.1:5000/api/hello/hello"


def test_the_line_to_try_follows_the_settings() -> None:
    made = plan(GATEWAY_PORT="5055", GATEWAY_ROUTE_PREFIX="/mesh", JWT_SECRET_KEY="k" * 32)
    assert made.try_line == "curl -H 'Authorization: Bearer <token>' http://localhost:5055/mesh/hello/hello"


def test_ports_come_from_the_daemons_own_variables() -> None:
    environ = {
        "GATEWAY_PORT": "6001",
        "GATEWAY_ADMIN_PORT": "6002",
        "DISCOVERY_PORT": "6003",
        "DISCOVERY_HTTP_PORT": "6004",
        "HEALTHMONITOR_PORT": "6005",
        "REGISTRY_PORT": "6006",
    }
    made = plan(**environ)
    assert {use.variable: str(use.port) for use in made.ports} == environ
    assert made.ready_urls == {
        "gateway": "http://127.0.0.1:6002/health/ready",
        "discovery": "http://127.0.0.1:6004/health/ready",
        "healthmonitor": "http://127.0.0.1:6005/health/ready",
        "registry": "http://127.0.0.1:6006/health/ready",
    }
    assert spec(made, "hello-1").environ["HELLO_DISCOVERY"] == "127.0.0.1:6003"
    assert spec(made, "gateway").environ["DASHBOARD_DISCOVERY_URL"] == "http://127.0.0.1:6004"
    assert spec(made, "gateway").environ["DASHBOARD_HEALTHMONITOR_URL"] == "http://127.0.0.1:6005"


def test_where_everything_is_where_it_is_looked_for_nobody_has_to_be_told() -> None:
    assert plan().exports == ()
    assert plan("http://localhost:8500").exports == ()


def test_services_and_commands_are_told_what_has_moved() -> None:
    moved = plan(DISCOVERY_PORT="18080", REGISTRY_PORT="18500", GATEWAY_ADMIN_PORT="19901", GATEWAY_PORT="15000")
    assert moved.exports == (
        "export MESH_DISCOVERY_ADDRESS=localhost:18080",
        "export CONSUL_ADDRESS=http://localhost:18500",
        "export GATEWAY_ADMIN_PORT=19901",
    )
    assert plan(DISCOVERY_HOST="127.0.0.2", GATEWAY_ADMIN_HOST="::1").exports == (
        "export MESH_DISCOVERY_ADDRESS=127.0.0.2:8080",
        "export GATEWAY_ADMIN_HOST=::1",
    )
    assert plan("consul:8500").exports == ("export CONSUL_ADDRESS=http://consul:8500",)


def test_no_secret_is_shown_with_what_has_moved() -> None:
    assert plan("http://user:secret@consul:8500").exports == ("export CONSUL_ADDRESS='http://***@consul:8500'",)
    assert plan(REGISTRY_TOKEN="secret").exports == ("export CONSUL_HTTP_TOKEN=<what REGISTRY_TOKEN says>",)


@pytest.mark.parametrize(
    ("consul", "environ", "source"),
    [
        pytest.param("nonsense", {}, "--consul", id="by the option"),
        pytest.param("", {"CONSUL_ADDRESS": "nonsense"}, "CONSUL_ADDRESS", id="by our variable"),
    ],
)
def test_a_word_that_is_no_address_of_a_consul_is_refused(consul: str, environ: dict[str, str], source: str) -> None:
    with pytest.raises(ConfigError, match=f"{source}='nonsense' is no address"):
        plan(consul, **environ)


def test_nothing_is_open_to_the_network_unless_somebody_says_so() -> None:
    assert {use.host for use in plan().ports} == {"127.0.0.1"}
    opened = plan(GATEWAY_HOST="0.0.0.0")
    assert {use.variable: use.host for use in opened.ports}["GATEWAY_PORT"] == "0.0.0.0"
    assert opened.try_line == "curl http://localhost:5000/api/hello/hello"


@pytest.mark.parametrize("host", ["", "localhost", "127.0.0.2", "::1"])
def test_whoever_tries_it_out_alone_is_not_limited(host: str) -> None:
    assert spec(plan(GATEWAY_HOST=host), "gateway").environ["GATEWAY_RATE_LIMIT_ENABLED"] == "false"


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({"GATEWAY_HOST": "0.0.0.0"}, id="open to the network"),
        pytest.param({"GATEWAY_HOST": "my-machine"}, id="a name that may be anything"),
        pytest.param({"GATEWAY_RATE_LIMIT_ENABLED": "true"}, id="asked for"),
        pytest.param({"GATEWAY_RATE_LIMIT_PERMITS": "7"}, id="set to a number"),
        pytest.param({"GATEWAY_RATE_LIMIT_WINDOW_SECONDS": "7"}, id="set to a window"),
    ],
)
def test_a_limit_that_is_wanted_stays(environ: dict[str, str]) -> None:
    assert spec(plan(**environ), "gateway").environ.get("GATEWAY_RATE_LIMIT_ENABLED") in (None, "true")


def test_state_lives_under_the_data_folder() -> None:
    made = plan()
    assert spec(made, "registry").environ["REGISTRY_DATA_DIR"] == "/data/registry"
    assert spec(made, "discovery").environ["DISCOVERY_DATA_DIR"] == "/data/discovery"
    assert spec(made, "healthmonitor").environ["HEALTHMONITOR_DATA_DIR"] == "/data/healthmonitor"
    assert spec(made, "gateway").environ["GATEWAY_SNAPSHOT_PATH"] == "/data/gateway/routes.json"
    assert set(made.folders) == {DATA / name for name in ("registry", "discovery", "healthmonitor", "gateway")}


def test_a_state_folder_of_its_own_is_respected() -> None:
    made = plan(REGISTRY_DATA_DIR="/elsewhere")
    assert spec(made, "registry").environ["REGISTRY_DATA_DIR"] == "/elsewhere"
    assert Path("/elsewhere") in made.folders


def test_every_wrong_setting_of_every_daemon_is_told_at_once() -> None:
    told = problems(GATEWAY_PORT="x", DISCOVERY_PROT="1", REGISTRY_PORT="y")
    assert "GATEWAY_PORT='x' is wrong" in told
    assert "DISCOVERY_PROT is not a setting; did you mean DISCOVERY_PORT?" in told
    assert "REGISTRY_PORT='y' is wrong" in told


def test_a_shared_mistake_is_told_once() -> None:
    assert len(problems(TOSKA_LOG_LEVEL="loud").splitlines()) == 1


def test_one_port_for_two_listeners_is_refused() -> None:
    assert problems(GATEWAY_PORT="6000", REGISTRY_PORT="6000") == (
        "GATEWAY_PORT and REGISTRY_PORT are both 6000; set one to another port"
    )


def test_a_port_that_nobody_could_find_is_refused() -> None:
    assert "GATEWAY_PORT=0" in problems(GATEWAY_PORT="0")


def test_a_gateway_gets_the_time_to_drain() -> None:
    assert spec(plan(GATEWAY_DRAIN_SECONDS="60"), "gateway").stop_seconds >= 65


def test_children_log_json_whatever_the_environment_says() -> None:
    assert spec(plan(TOSKA_LOG_FORMAT="console"), "gateway").environ["TOSKA_LOG_FORMAT"] == "json"


def test_the_environment_of_the_parent_is_passed_on() -> None:
    assert spec(plan(PATH="/bin", GATEWAY_RETRY_COUNT="1"), "gateway").environ["PATH"] == "/bin"
    assert spec(plan(GATEWAY_RETRY_COUNT="1"), "gateway").environ["GATEWAY_RETRY_COUNT"] == "1"


def test_every_child_accepts_its_environment(tmp_path: Path) -> None:
    (tmp_path / "gateway").mkdir()
    made = make_plan(Options(tmp_path), {})
    models = {daemon.name: daemon.settings for daemon in DAEMONS} | dict.fromkeys(made.samples, SAMPLE.settings)
    for name in made.names:
        load(models[name], spec(made, name).environ)


def test_the_samples_are_two_instances_of_one_service() -> None:
    made = plan()
    ids = [spec(made, name).environ["HELLO_INSTANCE_ID"] for name in made.samples]
    assert ids == ["hello-1", "hello-2"]
    assert load(SAMPLE.settings, spec(made, "hello-1").environ).settings.service == "hello"  # type: ignore[attr-defined]


def test_a_value_is_found_by_its_variable() -> None:
    settings = load(SAMPLE.settings, {"HELLO_PORT": "77"}).settings
    assert value_of(settings, "HELLO_PORT") == 77
    with pytest.raises(KeyError):
        value_of(settings, "NOPE")
