"""What every daemon carries around its job: process life, health, and a small HTTP server."""

from toska_mesh.admin.health import Health, HealthReport, HealthState
from toska_mesh.admin.process import run_daemon, run_to_the_end
from toska_mesh.admin.server import AdminServer, json_response, port_in_use, problem

__all__ = [
    "AdminServer",
    "Health",
    "HealthReport",
    "HealthState",
    "json_response",
    "port_in_use",
    "problem",
    "run_daemon",
    "run_to_the_end",
]
