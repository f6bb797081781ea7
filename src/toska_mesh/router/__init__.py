"""From a snapshot of the catalog to the instance that gets the next request. Pure: no I/O, no clock, usable alone.

`RouteTable.build` makes a table, `table.service(name)` finds a service, `service.pick(now)` chooses a `Target`.
"""

from toska_mesh.router.eligibility import Rank
from toska_mesh.router.picker import Pick, Picker
from toska_mesh.router.policy import MAX_WEIGHT, RoutingPolicy
from toska_mesh.router.service import Service, Standing
from toska_mesh.router.strategies import STRATEGIES, Strategy, parse_strategy
from toska_mesh.router.table import RouteTable
from toska_mesh.router.target import Target

__all__ = [
    "MAX_WEIGHT",
    "STRATEGIES",
    "Pick",
    "Picker",
    "Rank",
    "RouteTable",
    "RoutingPolicy",
    "Service",
    "Standing",
    "Strategy",
    "Target",
    "parse_strategy",
]
