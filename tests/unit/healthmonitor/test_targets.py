"""What is probed, how, and what is refused."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.healthmonitor.builders import an_instance

from toska_mesh.healthmonitor.probes.http import build_request
from toska_mesh.healthmonitor.targets import NOT_CONFIGURED, ProbeKind, object_to, plan_probe


@pytest.mark.parametrize(
    ("metadata", "kind", "port", "tls"),
    [
        pytest.param({}, ProbeKind.HTTP, 8080, False, id="http by default"),
        pytest.param({"scheme": ""}, ProbeKind.HTTP, 8080, False, id="no scheme means http"),
        pytest.param({"scheme": "HTTPS"}, ProbeKind.HTTP, 8080, True, id="https in any case"),
        pytest.param({"tcp_port": "9"}, ProbeKind.HTTP, 8080, False, id="an HTTP endpoint beats a tcp port"),
        pytest.param({"grpc_port": "9"}, ProbeKind.HTTP, 8080, False, id="an HTTP endpoint beats a grpc port"),
        pytest.param({"health_check_endpoint": "", "tcp_port": "9"}, ProbeKind.TCP, 9, False, id="tcp port alone"),
        pytest.param({"health_check_endpoint": "", "grpc_port": "9"}, ProbeKind.GRPC, 9, False, id="grpc port alone"),
        pytest.param({"scheme": "grpc"}, ProbeKind.GRPC, 8080, False, id="scheme grpc, own port"),
        pytest.param({"scheme": "grpcs", "grpc_port": "9"}, ProbeKind.GRPC, 9, True, id="scheme grpcs, other port"),
        pytest.param({"scheme": "tcp"}, ProbeKind.TCP, 8080, False, id="scheme tcp, own port"),
        pytest.param({"scheme": "tcp", "tcp_port": "9"}, ProbeKind.TCP, 9, False, id="scheme tcp, other port"),
    ],
)
def test_metadata_decides_the_kind(metadata, kind, port, tls):
    plan = plan_probe(an_instance(**metadata))
    assert (plan.kind, plan.port, plan.tls, plan.host) == (kind, port, tls, "10.0.0.1")
    assert plan.is_probed


def test_without_any_probe_setting_nothing_is_probed():
    plan = plan_probe(an_instance(health_check_endpoint=""))
    assert (plan.kind, plan.reason, plan.is_probed) == (ProbeKind.NONE, NOT_CONFIGURED, False)
    assert NOT_CONFIGURED == "No probe configuration available"


@pytest.mark.parametrize(
    "endpoint",
    ["health", "@evil.example/health", ":80@evil.example/", "//evil.example/health", "http://evil.example/", "/a b",
     "/a\r\nHost: evil.example", "/a#b", "/\x00", "/ä"],
)  # fmt: skip
def test_an_endpoint_that_is_no_plain_path_is_refused(endpoint):
    plan = plan_probe(an_instance(health_check_endpoint=endpoint))
    assert plan.kind is ProbeKind.NONE
    assert "health_check_endpoint" in plan.reason


@pytest.mark.parametrize(
    ("metadata", "word"),
    [
        pytest.param({"scheme": "gopher"}, "gopher", id="scheme"),
        pytest.param({"health_check_endpoint": "", "tcp_port": "http"}, "tcp_port", id="tcp port, a word"),
        pytest.param({"health_check_endpoint": "", "tcp_port": "70000"}, "tcp_port", id="tcp port, too large"),
        pytest.param({"scheme": "grpc", "grpc_port": "0"}, "grpc_port", id="grpc port, zero"),
    ],
)
def test_settings_without_a_meaning_are_named_and_not_probed(metadata, word):
    plan = plan_probe(an_instance(**metadata))
    assert plan.kind is ProbeKind.NONE
    assert word in plan.reason


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "fd00:ec2::254", "100.100.100.200"],
)
def test_link_local_and_metadata_addresses_are_refused_unless_allowed(host):
    instance = an_instance(host=host)
    plan = plan_probe(instance)
    assert plan.kind is ProbeKind.NONE
    assert "HEALTHMONITOR_ALLOW_LINK_LOCAL" in plan.reason
    assert plan_probe(instance, allow_link_local=True).kind is ProbeKind.HTTP


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "user@evil.example", "a/b", "-x"])
def test_addresses_of_no_single_host_are_refused_always(host):
    assert plan_probe(an_instance(host=host), allow_link_local=True).kind is ProbeKind.NONE


@pytest.mark.parametrize("host", ["10.1.2.3", "127.0.0.1", "::1", "fd12::1", "203.0.113.9", "::ffff:10.0.0.1"])
def test_private_and_public_addresses_are_probed(host):
    assert plan_probe(an_instance(host=host)).address == ipaddress.ip_address(host)
    assert object_to(ipaddress.ip_address(host)) == ""


def test_a_name_is_probed_and_left_to_be_resolved():
    plan = plan_probe(an_instance(host="orders.internal"))
    assert (plan.kind, plan.address, plan.authority) == (ProbeKind.HTTP, None, "orders.internal:8080")


def test_an_ipv6_address_is_bracketed_in_the_host_header():
    plan = plan_probe(an_instance(host="fd12::1"))
    assert b"Host: [fd12::1]:8080\r\n" in build_request(plan, {})


def test_headers_of_the_operator_replace_ours():
    request = build_request(plan_probe(an_instance()), {"host": "orders.example", "X-Probe": "1"})
    assert request.startswith(b"GET /health HTTP/1.1\r\n")
    assert request.lower().count(b"host:") == 1
    assert b"host: orders.example\r\n" in request
    assert b"X-Probe: 1\r\n" in request
    assert request.endswith(b"Connection: close\r\n\r\n")


_HOSTS = st.text(min_size=1, max_size=30).filter(lambda host: " " not in host and host.isprintable())  # as the model


@given(endpoint=st.text(max_size=40), scheme=st.text(max_size=8), host=_HOSTS)
def test_no_registration_can_forge_a_request_or_break_the_planning(endpoint, scheme, host):
    plan = plan_probe(an_instance(host=host, health_check_endpoint=endpoint, scheme=scheme))
    if plan.kind is ProbeKind.HTTP:
        head, _, rest = build_request(plan, {}).partition(b"\r\n\r\n")
        assert rest == b""
        assert len(head.split(b"\r\n")) == 5
        assert head.split(b" ")[1] == plan.path.encode()
    elif plan.kind is ProbeKind.NONE:
        assert plan.reason
