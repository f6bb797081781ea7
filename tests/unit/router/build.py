"""Short ways to make instances, targets and tables for the router's tests."""

from collections.abc import Sequence
from random import Random

from toska_mesh.model import CatalogSnapshot, Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.router import Service, Target, parse_strategy
from toska_mesh.router.picker import Picker
from toska_mesh.router.strategies import make_picker

ORDERS = ServiceName("orders")


def instance(
    id: str,
    status: HealthStatus = HealthStatus.HEALTHY,
    *,
    service: str = "orders",
    host: str = "10.0.0.1",
    port: int = 0,
    created: int = 0,
    output: str = "",
    is_member: bool = True,
    **metadata: str,
) -> Instance:
    """An instance with an endpoint of its own (by its id) unless a port is given."""
    port = port or 1024 + sum(ord(char) * 31**place for place, char in enumerate(id)) % 60000
    members = {"scheme": "http"} if is_member else {}
    return Instance(
        ServiceName(service),
        InstanceId(id),
        Endpoint(host, port),
        status,
        {**members, **metadata},
        create_index=created,
        output=output,
    )


def draining(id: str, status: HealthStatus = HealthStatus.HEALTHY) -> Instance:
    return instance(id, status, **{"toska-draining": "true"})


def snapshot(*instances: Instance, version: int = 1) -> CatalogSnapshot:
    services: dict[ServiceName, tuple[Instance, ...]] = {}
    for one in instances:
        services[one.service] = (*services.get(one.service, ()), one)
    return CatalogSnapshot(services, version)


def targets(*ids: str, weights: Sequence[int] = ()) -> list[Target]:
    made = [Target(instance(id)) for id in ids]
    for target, weight in zip(made, weights, strict=False):
        target.weight = weight
    return made


def picker(strategy: str, among: Sequence[Target], previous: object = None, seed: int = 1) -> Picker:
    known = parse_strategy(strategy)
    assert known is not None
    return make_picker(known, among, Random(seed), previous)


def ids(chosen: Sequence[Target | None]) -> str:
    return " ".join(target.instance.id if target is not None else "-" for target in chosen)


def eligible(service: Service) -> list[str]:
    return [target.instance.id for target in service.targets]


def reasons(service: Service) -> dict[str, str]:
    return {standing.target.instance.id: standing.reason for standing in service.everything}
