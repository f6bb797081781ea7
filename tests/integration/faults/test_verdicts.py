"""What a health monitor finds reaches the gateway, and vanishes with the monitor."""

import asyncio

from tests.integration.faults.mesh import Mesh, in_thread
from tests.support.backend import Backend
from tests.support.wait import eventually


class Monitor:
    """A health monitor's side of the verdict board: a session, and one key per service held by it."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        body = {"Name": "monitor under test", "Behavior": "delete", "TTL": "30s", "LockDelay": "0s"}
        self.session = mesh.call("PUT", "/session/create", body)["ID"]

    def judge(self, probed: int, *unhealthy: Backend) -> None:
        found = {backend.instance: "Unhealthy" for backend in unhealthy}
        written = self.mesh.call(
            "PUT",
            f"/kv/toska/verdicts/{self.mesh.service}?acquire={self.session}",
            {"monitor": "test", "probed": probed, "instances": found},
        )
        assert written is True

    def die(self) -> None:
        self.mesh.call("PUT", f"/session/destroy/{self.session}")


async def test_an_instance_judged_unhealthy_gets_nothing_until_the_monitor_takes_it_back(mesh: Mesh) -> None:
    one, two, three = (mesh.backend(name) for name in ("one", "two", "three"))
    mesh.start()
    monitor = Monitor(mesh)
    async with mesh.load(connections=6).running() as figures:
        await in_thread(monitor.judge, 3, one)
        await mesh.until_routed(two, three)
        item = mesh.instances()[one.instance]
        assert (item["verdict"], item["isEligible"]) == ("Unhealthy", False)
        assert "verdict" in item["why"]
        asked = one.requests
        await asyncio.sleep(0.3)
        assert one.requests == asked
        await in_thread(monitor.judge, 3)
        await mesh.until_routed(one, two, three)
        await eventually(lambda: one.requests > asked)
    figures.assert_no_failure()


async def test_with_the_monitor_its_verdicts_die(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start()
    monitor = Monitor(mesh)
    await in_thread(monitor.judge, 2, one)
    await mesh.until_routed(two)
    await in_thread(monitor.die)
    await mesh.until_routed(one, two)
    assert mesh.instances()[one.instance]["verdict"] is None


async def test_verdicts_against_most_of_a_service_are_not_believed(mesh: Mesh) -> None:
    one, two, three = (mesh.backend(name) for name in ("one", "two", "three"))
    gateway = mesh.start()
    monitor = Monitor(mesh)
    async with mesh.load(connections=6).running() as figures:
        await in_thread(monitor.judge, 3, one)
        await mesh.until_routed(two, three)
        await in_thread(monitor.judge, 3, one, two, three)
        await mesh.until_routed(one, two, three)
        figures.instances.clear()
        await eventually(lambda: len(figures.instances) == 3)
    figures.assert_no_failure()
    (route,) = [route for route in mesh.admin("/routes")["routes"] if route["service"] == mesh.service]
    assert route["inPanic"] is True
    assert any("panic" in warning for warning in route["warnings"])
    assert mesh.service in {event["service"] for event in gateway.events("verdicts_not_believed")}
    await in_thread(monitor.judge, 3)
    await eventually(lambda: not any(route["inPanic"] for route in mesh.admin("/routes")["routes"]))


async def test_the_only_instance_judged_unhealthy_means_503_at_once(mesh: Mesh) -> None:
    one = mesh.backend("one")
    mesh.start()
    await in_thread(Monitor(mesh).judge, 1, one)
    await mesh.until_routed()
    answer = await mesh.request("GET")
    assert answer.status == 503
    assert b'"no-instance"' in answer.body
    assert "retry-after" in answer.fields
