"""What is checked in under `pb` is what the compiler makes of `proto/`, and it is the contract."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from toska_mesh.pb import discovery_pb2

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "tools" / "generate_pb.py"

SERVICE = discovery_pb2.DESCRIPTOR.services_by_name["DiscoveryRegistry"]

CONTRACT = {
    "HealthCheckConfig": {"endpoint": 1, "intervalSeconds": 2, "timeoutSeconds": 3, "unhealthyThreshold": 4},
    "RegisterServiceRequest": {
        "serviceName": 1,
        "serviceId": 2,
        "address": 3,
        "port": 4,
        "metadata": 5,
        "healthCheck": 6,
    },
    "RegisterServiceResponse": {"success": 1, "serviceId": 2, "errorMessage": 3},
    "DeregisterServiceRequest": {"serviceId": 1},
    "DeregisterServiceResponse": {"removed": 1},
    "GetInstancesRequest": {"serviceName": 1},
    "GetInstancesResponse": {"instances": 1},
    "ServiceInstance": {
        "serviceName": 1,
        "serviceId": 2,
        "address": 3,
        "port": 4,
        "status": 5,
        "metadata": 6,
        "registeredAt": 7,
        "lastHealthCheck": 8,
    },
    "GetServicesRequest": {},
    "GetServicesResponse": {"serviceNames": 1},
    "ReportHealthRequest": {"serviceId": 1, "status": 2, "output": 3},
    "ReportHealthResponse": {"success": 1},
}


def test_the_checked_in_modules_are_what_the_compiler_makes() -> None:
    check = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert check.returncode == 0, check.stderr


def test_a_stale_module_is_named(tmp_path: Path) -> None:
    tool = runpy.run_path(str(SCRIPT))
    stale = tool["stale"]
    stale.__globals__["PACKAGE"] = tmp_path
    assert stale() == [
        *("discovery_pb2.py", "discovery_pb2.pyi", "discovery_pb2_grpc.py"),
        *("mesh_pb2.py", "mesh_pb2.pyi", "mesh_pb2_grpc.py"),
    ]


@pytest.mark.parametrize("message", sorted(CONTRACT))
def test_message_fields_keep_their_names_and_numbers(message: str) -> None:
    fields = discovery_pb2.DESCRIPTOR.message_types_by_name[message].fields
    assert {field.name: field.number for field in fields} == CONTRACT[message]


def test_no_message_beyond_the_contract() -> None:
    assert sorted(discovery_pb2.DESCRIPTOR.message_types_by_name) == sorted(CONTRACT)


def test_the_service_has_the_five_unary_methods() -> None:
    assert SERVICE.full_name == "toskamesh.discovery.DiscoveryRegistry"
    assert {
        method.name: (method.input_type.name, method.output_type.name, method.client_streaming, method.server_streaming)
        for method in SERVICE.methods
    } == {
        "Register": ("RegisterServiceRequest", "RegisterServiceResponse", False, False),
        "Deregister": ("DeregisterServiceRequest", "DeregisterServiceResponse", False, False),
        "GetInstances": ("GetInstancesRequest", "GetInstancesResponse", False, False),
        "GetServices": ("GetServicesRequest", "GetServicesResponse", False, False),
        "ReportHealth": ("ReportHealthRequest", "ReportHealthResponse", False, False),
    }


def test_health_status_numbers() -> None:
    assert dict(discovery_pb2.HealthStatus.items()) == {
        "HEALTH_STATUS_UNKNOWN": 0,
        "HEALTH_STATUS_HEALTHY": 1,
        "HEALTH_STATUS_UNHEALTHY": 2,
        "HEALTH_STATUS_DEGRADED": 3,
    }
