"""What the proxy keeps beside the table is patched at every change, and is what a look at the whole would give."""

import asyncio
from collections.abc import Mapping
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from tests.support.virtual_loop import run_virtual

from toska_mesh.gateway.proxy import Proxy
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.model import CatalogSnapshot, Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.router import RouteTable

METADATA: list[dict[str, str]] = [
    {},
    {"toska-timeout-ms": "500"},
    {"toska-path": "/shop"},
    {"toska-prefix": "keep"},
    {"toska-host": "a.example"},
    {"toska-auth": "none"},
    {"toska-max-request-bytes": "10"},
    {"toska-max-request-bytes": "9000000"},
]
steps = st.lists(
    st.tuples(
        st.sampled_from(["orders", "Orders", "pay", "Pay", "dashboard", "api"]),
        st.none() | st.lists(st.tuples(st.integers(1, 3), st.sampled_from(METADATA)), max_size=3),
        st.booleans(),
    ),
    max_size=10,
)


def instances(name: str, found: list[tuple[int, dict[str, str]]]) -> tuple[Instance, ...]:
    by_id = {
        number: Instance(
            ServiceName(name),
            InstanceId(f"{name}-{number}"),
            Endpoint("10.0.0.1", number),
            HealthStatus.HEALTHY,
            {"scheme": "http", **metadata},
        )
        for number, metadata in found
    }
    return tuple(by_id.values())


def state(proxy: Proxy) -> dict[str, object]:
    return {
        "upstreams": set(proxy.upstreams()),
        "plain": dict(proxy._plain),
        "public": proxy._has_public_routes,
        "unrouted": proxy.unrouted,
        "paths": {service.name for service in proxy._with_paths},
        "particular": dict(proxy._particular),
    }


@given(steps, st.sampled_from(["/api/", "/"]), st.booleans())
def test_a_patched_table_is_used_like_a_whole_one(
    steps: list[tuple[str, list[tuple[int, dict[str, str]]] | None, bool]], prefix: str, may_relax: bool
) -> None:
    settings = GatewaySettings(route_prefix=prefix, metadata_may_relax=may_relax, max_request_bytes=100)

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            patched = Proxy(settings, tasks, access_log=None)
            services: Mapping[ServiceName, tuple[Instance, ...]] = {}
            table: RouteTable | None = None
            for name, found, is_used in steps:
                services = {key: value for key, value in services.items() if key != name}
                if found is not None:
                    services[ServiceName(name)] = instances(name, found)
                table = RouteTable.build(
                    CatalogSnapshot(services), previous=table, make_target=patched.make_upstream, rng=Random(1)
                )
                if not is_used:  # a bug kept it from being used: the next one is used all the same
                    continue
                patched.use_table(table)
                whole = Proxy(settings, tasks, access_log=None)
                whole.operator = patched.operator  # whose default the policies of the services are told by
                whole.use_table(table)
                assert state(patched) == state(whole)
                assert patched._plain == {
                    segment: service
                    for segment, service in table.by_bytes.items()
                    if not service.policy.is_special and segment != patched._own_segment
                }
                assert len(patched.upstreams()) == len(set(patched.upstreams()))
                assert patched.table is table

    run_virtual(run)
