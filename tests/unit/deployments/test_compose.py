"""The compose file, the Dockerfile and the settings models say the same."""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from toska_mesh.cli.daemons import DISCOVERY, GATEWAY, HEALTHMONITOR, REGISTRY, SAMPLE, value_of
from toska_mesh.cli.sample import SampleSettings
from toska_mesh.settings import DaemonSettings, load, variables_of

ROOT = Path(__file__).resolve().parents[3]
COMPOSE: Mapping[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: Mapping[str, Mapping[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "deployments/Dockerfile").read_text().replace("\\\n", " ")
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

OURS = {
    "gateway": GATEWAY,
    "discovery": DISCOVERY,
    "healthmonitor": HEALTHMONITOR,
    "hello-1": SAMPLE,
    "hello-2": SAMPLE,
}
TARGETS = {
    "gateway": GATEWAY,
    "discovery": DISCOVERY,
    "healthmonitor": HEALTHMONITOR,
    "registry": REGISTRY,
    "sample": SAMPLE,
}
PORTS = {
    "gateway": ["GATEWAY_PORT", "GATEWAY_ADMIN_PORT"],
    "discovery": ["DISCOVERY_PORT", "DISCOVERY_HTTP_PORT"],
    "healthmonitor": ["HEALTHMONITOR_PORT"],
    "registry": ["REGISTRY_PORT"],
    "sample": ["HELLO_PORT"],
}
"""The variables of the ports a daemon listens on; the last one has the health paths."""
STATE = "/var/lib/toska/gateway"
PUBLIC = ["GATEWAY_PORT"]
"""What may be reached from other machines."""


def interpolated(text: str) -> str:
    """As compose does with an empty environment."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def environment_of(service: str) -> dict[str, str]:
    return {name: interpolated(str(value)) for name, value in SERVICES[service].get("environment", {}).items()}


def settings_of(service: str) -> DaemonSettings:
    """As the daemon reads them in its container, where the image has made the state folders."""
    environ = {name: value.replace(STATE, str(ROOT / "deployments")) for name, value in environment_of(service).items()}
    return load(OURS[service].settings, environ).settings


def stages() -> dict[str, list[str]]:
    """The instructions of each stage of the Dockerfile, by its name."""
    found: dict[str, list[str]] = {}
    for line in (line.strip() for line in DOCKERFILE.splitlines()):
        if line.startswith("FROM "):
            found[line.split(" AS ")[1]] = [line]
        elif line and not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return found


def instruction(stage: str, word: str) -> str:
    (line,) = [line for line in stages()[stage] if line.startswith(f"{word} ")]
    return line.removeprefix(f"{word} ")


def stage_environment(stage: str) -> dict[str, str]:
    lines = [line.removeprefix("ENV ") for line in stages()[stage] if line.startswith("ENV ")]
    return dict(pair.split("=", 1) for line in lines for pair in line.split())


def port_of(settings: DaemonSettings, variable: str) -> int:
    return int(str(value_of(settings, variable)))


@pytest.mark.parametrize("service", OURS)
def test_every_variable_is_a_setting_of_that_daemon(service: str) -> None:
    known = {name for variable in variables_of(OURS[service].settings) for name in (variable.name, *variable.also)}
    assert set(environment_of(service)) <= known


@pytest.mark.parametrize("service", OURS)
def test_the_daemon_accepts_the_environment_it_gets(service: str) -> None:
    settings_of(service)


@pytest.mark.parametrize("service", OURS)
def test_the_command_is_the_console_script_of_that_daemon(service: str) -> None:
    command = " ".join(SERVICES[service]["command"])
    assert command == OURS[service].command
    if command in SCRIPTS:
        assert SCRIPTS[command] == f"toska_mesh.entry:{OURS[service].name}"
    else:
        assert command == f"python -m {OURS[service].module}"


@pytest.mark.parametrize("service", OURS)
def test_the_service_is_built_from_a_target_with_the_same_command(service: str) -> None:
    build = SERVICES[service]["build"]
    assert (ROOT / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    assert TARGETS[build["target"]] is OURS[service]
    assert json.loads(instruction(build["target"], "CMD")) == SERVICES[service]["command"]


@pytest.mark.parametrize("service", OURS)
def test_published_ports_are_those_the_daemon_listens_on(service: str) -> None:
    target = SERVICES[service]["build"]["target"]
    listening = {port_of(settings_of(service), variable): variable for variable in PORTS[target]}
    for published in SERVICES[service].get("ports", []):
        *host, outside, inside = published.split(":")
        assert outside == inside
        variable = listening[int(inside)]
        assert host == ([] if variable in PUBLIC else ["127.0.0.1"])


def test_the_ports_of_the_mesh_are_published() -> None:
    published = {port.split(":")[-1] for service in OURS for port in SERVICES[service].get("ports", [])}
    assert published == {"5000", "9901", "8080", "5010", "8081"}


@pytest.mark.parametrize("service", OURS)
def test_what_is_reached_from_other_containers_listens_on_all_addresses(service: str) -> None:
    settings = settings_of(service)
    hosts = [variable for variable in variables_of(type(settings)) if variable.name.endswith("_HOST")]
    assert hosts
    assert {value_of(settings, variable.name) for variable in hosts} == {"0.0.0.0"}


@pytest.mark.parametrize("service", OURS)
def test_addresses_lead_to_services_and_ports_that_exist(service: str) -> None:
    for name, value in environment_of(service).items():
        target = urlsplit(value if "://" in value else f"//{value}")
        if name.endswith(("_URL", "_ADDRESS")) or name == "HELLO_DISCOVERY":
            assert target.hostname in SERVICES, name
            ports = {
                "consul": {8500},
                "rabbitmq": {5672},
                "prometheus": {9090},
                "discovery": {5010, 8080},
                "healthmonitor": {8081},
            }
            assert target.port in ports[target.hostname], name


def test_the_sample_registers_at_the_grpc_port() -> None:
    port = port_of(settings_of("discovery"), "DISCOVERY_PORT")
    assert environment_of("hello-1")["HELLO_DISCOVERY"] == f"discovery:{port}"


def test_the_two_samples_are_two_instances() -> None:
    assert environment_of("hello-1")["HELLO_INSTANCE_ID"] != environment_of("hello-2")["HELLO_INSTANCE_ID"]


def test_trying_it_out_in_a_loop_is_not_too_much() -> None:
    """All of this machine is one client behind docker's NAT: a hundred curls a second should pass."""
    settings = settings_of("gateway")
    per_second = float(str(value_of(settings, "GATEWAY_RATE_LIMIT_PERMITS"))) / float(
        str(value_of(settings, "GATEWAY_RATE_LIMIT_WINDOW_SECONDS"))
    )
    assert per_second >= 100
    assert "${GATEWAY_RATE_LIMIT_PERMITS:-" in SERVICES["gateway"]["environment"]["GATEWAY_RATE_LIMIT_PERMITS"]


def test_start_order_waits_for_health() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, f"{name} -> {needed}"
            assert "healthcheck" in SERVICES[needed] or needed in OURS
    assert set(SERVICES["discovery"]["depends_on"]) == {"consul", "rabbitmq"}


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_every_service_comes_back_by_itself(service: str) -> None:
    assert SERVICES[service]["restart"] == "unless-stopped"


@pytest.mark.parametrize("service", sorted(set(SERVICES) - set(OURS)))
def test_foreign_images_have_a_version_and_stay_on_this_machine(service: str) -> None:
    _, _, tag = SERVICES[service]["image"].partition(":")
    assert tag
    assert tag != "latest"
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[service]["ports"])


def test_volumes_are_declared_and_cover_the_state_folders() -> None:
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", [])]
    named = {source for source, *_ in mounts if not source.startswith(".")}
    assert named == set(COMPOSE["volumes"])
    for source, *_ in mounts:
        assert not source.startswith(".") or (ROOT / source).is_file()
    state = stage_environment("runtime")["XDG_STATE_HOME"]
    for service in ("gateway", "discovery", "healthmonitor"):
        assert SERVICES[service]["volumes"] == [f"{service}:{state}/toska/{service}"]
        assert f"{state}/toska/{service}" in DOCKERFILE
    assert environment_of("gateway")["GATEWAY_SNAPSHOT_PATH"].startswith(f"{state}/toska/gateway/")


def test_a_drain_fits_into_the_time_before_the_kill() -> None:
    for service, variable in (("gateway", "GATEWAY_DRAIN_SECONDS"), ("discovery", "DISCOVERY_DRAIN_SECONDS")):
        drain = float(str(value_of(settings_of(service), variable)))
        assert float(SERVICES[service]["stop_grace_period"].removesuffix("s")) > drain + 5


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_exposes_and_probes_the_ports_of_its_daemon(target: str) -> None:
    daemon = TARGETS[target]
    environ = stage_environment(target)
    settings = load(daemon.settings, environ).settings
    ports = [port_of(settings, variable) for variable in PORTS[target]]
    assert [int(port) for port in instruction(target, "EXPOSE").split()] == ports
    (probed,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", instruction(target, "HEALTHCHECK"))
    assert probed == (str(ports[-1]), "/health" if daemon is SAMPLE else "/health/ready")
    assert instruction(target, "FROM") == f"runtime AS {target}"


def test_health_paths_are_served() -> None:
    assert SampleSettings().options().health_endpoint == "/health"


def test_the_processes_do_not_run_as_root() -> None:
    assert instruction("runtime", "USER") == "10001:10001"
    assert stages()["runtime"][-1].startswith("USER ")
    for target in TARGETS:
        assert not any(line.startswith("USER ") for line in stages()[target])


def test_what_the_dockerfile_copies_exists() -> None:
    sources = [
        word
        for lines in stages().values()
        for line in lines
        if line.startswith("COPY ") and "--from=" not in line
        for word in line.split()[1:-1]
    ]
    assert {"constraints.txt", "pyproject.toml", "src"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []
    ignored = (ROOT / "deployments/Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{source.removeprefix('./')}" for source in sources} <= set(ignored)


def test_prometheus_scrapes_every_daemon_where_its_metrics_are() -> None:
    config = yaml.safe_load((ROOT / "deployments/prometheus.yml").read_text())
    targets = {
        target for job in config["scrape_configs"] for static in job["static_configs"] for target in static["targets"]
    }
    for service in ("gateway", "discovery", "healthmonitor"):
        port = port_of(settings_of(service), PORTS[service][-1])
        assert f"{service}:{port}" in targets
    (mount,) = [mount for mount in SERVICES["prometheus"]["volumes"] if mount.startswith("./")]
    source, inside, mode = mount.split(":")
    assert (ROOT / source).resolve() == ROOT / "deployments/prometheus.yml"
    assert f"--config.file={inside}" in SERVICES["prometheus"]["command"]
    assert mode == "ro"
