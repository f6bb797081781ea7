"""How one instance gets into the mesh and stays there, whatever the other side does."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
from tests.unit.sdk.fakes import MEMBER, SILENCE, After, ScriptedEnrolment, away

from toska_mesh.errors import RegistryError
from toska_mesh.model import HealthStatus
from toska_mesh.sdk.enrolment import NobodyListensError
from toska_mesh.sdk.membership import Membership, wait_seconds

H, D, U = HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY


class App:
    """An app whose health the test sets."""

    def __init__(self) -> None:
        self.answer: object = (H, "")
        self.asked = 0

    async def health(self) -> tuple[HealthStatus, str]:
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        if self.answer is SILENCE:
            await asyncio.Event().wait()
        return self.answer  # type: ignore[return-value]


def membership(enrolment: ScriptedEnrolment, app: App | None = None, **options: bool) -> Membership:
    return Membership(enrolment, MEMBER, (app or App()).health, rng=random.Random(1), **options)


@asynccontextmanager
async def keeping(joined: Membership) -> AsyncIterator[Membership]:
    async with asyncio.TaskGroup() as tasks:
        keeper = tasks.create_task(joined.keep())
        try:
            yield joined
        finally:
            keeper.cancel()


async def keep_for(seconds: float, joined: Membership) -> None:
    async with keeping(joined):
        await asyncio.sleep(seconds)


async def test_it_registers_beats_soon_and_then_at_a_third_of_the_ttl() -> None:
    enrolment = ScriptedEnrolment()
    await keep_for(14, membership(enrolment))
    assert enrolment.times("register") == [0.0]
    first, second, third = enrolment.times("report")
    assert 0.5 <= first <= 1.0
    assert (second, third) == (first + 5, first + 10)
    assert set(enrolment.said) == {(H, "serving")}


async def test_it_says_whether_the_mesh_knows_it_and_why_not() -> None:
    enrolment = ScriptedEnrolment(register=[away("discovery is away"), After(2, None)])
    joined = membership(enrolment)
    assert not joined.is_registered
    async with keeping(joined):
        await asyncio.sleep(0.5)
        assert joined.why_not == "discovery is away"
        assert await joined.registered() == "orders-1"
        assert joined.is_registered
        assert joined.why_not == ""


async def test_other_threads_may_ask_whether_it_is_registered() -> None:
    joined = membership(ScriptedEnrolment())
    assert not await asyncio.to_thread(lambda: joined.is_registered)
    async with keeping(joined):
        await joined.registered()
        assert await asyncio.to_thread(lambda: joined.is_registered)


async def test_it_registers_until_somebody_takes_it(caplog: pytest.LogCaptureFixture) -> None:
    enrolment = ScriptedEnrolment(register=[away(), away(), RegistryError("no such tenant"), SILENCE, None])
    await keep_for(20, membership(enrolment))
    assert len(enrolment.times("register")) == 5
    waits = [record.__dict__["fields"]["reason"] for record in caplog.records if record.levelname == "WARNING"]
    assert waits == ["nobody listens", "no such tenant", "no answer in time"]  # each reason once, not each try


async def test_an_outage_is_told_once_a_minute_and_not_each_time_its_reason_comes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    enrolment = ScriptedEnrolment(register=[away("four"), away("six")] * 200)
    await keep_for(150, membership(enrolment))
    told = [(record.__dict__["event"], record.__dict__["fields"]["reason"]) for record in caplog.records]
    assert told == [("waiting_for_registration", reason) for _ in range(3) for reason in ("four", "six")]


async def test_reasons_that_are_never_the_same_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    enrolment = ScriptedEnrolment(register=[away(f"request {number}") for number in range(1000)])
    await keep_for(59, membership(enrolment))
    assert len(caplog.records) == 4


async def test_beats_that_stay_away_are_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    enrolment = ScriptedEnrolment(report=[True, away("four"), away("six"), *[away()] * 1000])
    await keep_for(150, membership(enrolment))
    assert [record.__dict__["event"] for record in caplog.records] == ["beat_failed"] * 3
    assert caplog.records[0].__dict__["fields"]["lost"] == 1
    assert caplog.records[1].__dict__["fields"]["lost"] > 10


async def test_what_was_refused_at_the_door_is_not_known() -> None:
    nobody = NobodyListensError("nobody listens", is_here=False)
    joined = membership(ScriptedEnrolment(register=[nobody]))
    await keep_for(5, joined)
    assert not joined.may_be_known
    joined = membership(ScriptedEnrolment(register=[SILENCE, nobody]))
    await keep_for(10, joined)
    assert joined.may_be_known  # the first try may have arrived


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("0.0.0.0", "0.0.0.0 (where the mesh sees us)"),
        ("::", ":: (where the mesh sees us)"),
        ("", "none (where the mesh sees us)"),
        ("10.0.0.7", "10.0.0.7"),
        ("orders.test", "orders.test"),
    ],
)
async def test_the_log_says_which_address_others_will_use(
    address: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await keep_for(1, Membership(ScriptedEnrolment(), replace(MEMBER, address=address)))
    (record,) = caplog.records
    assert record.__dict__["fields"]["address"] == shown


async def test_an_outage_of_hours_is_asked_about_every_few_seconds() -> None:
    enrolment = ScriptedEnrolment(register=[away()])
    await keep_for(3600, membership(enrolment))
    tries = enrolment.times("register")
    assert 3600 / 5 <= len(tries) <= 3600 / 2.5 + 20
    assert tries[1] < 0.2


async def test_a_refused_beat_registers_again_at_once() -> None:
    enrolment = ScriptedEnrolment(report=[True, False, True])
    joined = membership(enrolment)
    await keep_for(12, joined)
    _, refused, _ = enrolment.times("report")[:3]
    assert enrolment.times("register") == [0.0, refused]
    assert joined.is_registered


async def test_a_lost_beat_is_repeated_within_a_second_and_does_not_register_again() -> None:
    enrolment = ScriptedEnrolment(report=[True, away(), True])
    await keep_for(8, membership(enrolment))
    first, lost, repeated = enrolment.times("report")
    assert lost == first + 5
    assert lost < repeated <= lost + 1.0
    assert enrolment.times("register") == [0.0]


async def test_during_an_outage_beats_never_stop_and_the_log_stays_short(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    enrolment = ScriptedEnrolment(report=[True, *[away()] * 20, True])
    joined = membership(enrolment)
    async with keeping(joined):
        await asyncio.sleep(20)
        silent = 20 - enrolment.times("report")[0]
        assert joined.why_not == f"no beat was acknowledged for {silent:.0f} s: nobody listens"
        await asyncio.sleep(40)
        assert joined.is_registered
    gaps = [later - earlier for earlier, later in pairwise(enrolment.times("report"))]
    assert max(gaps) <= 5.0
    events = [vars(record)["event"] for record in caplog.records]
    assert events == ["registered", "beat_failed", "beats_resumed"]


async def test_a_change_of_health_is_said_at_once_and_not_with_the_next_beat() -> None:
    enrolment, app = ScriptedEnrolment(), App()
    joined = membership(enrolment, app)
    async with keeping(joined):
        await asyncio.sleep(6)
        app.answer = (D, "the cache is cold")
        joined.look_again()
        await asyncio.sleep(0.01)
        assert enrolment.said[-1] == (D, "the cache is cold")
        assert enrolment.times("report")[-1] == 6.0
        app.answer = (H, "")
        await asyncio.sleep(2.1)  # nobody said that it changed
        assert enrolment.said[-1] == (H, "serving")


async def test_other_words_for_the_same_health_wait_for_the_next_beat() -> None:
    enrolment, app = ScriptedEnrolment(), App()
    app.answer = (D, "lag 1 s")
    async with keeping(membership(enrolment, app)) as joined:
        await asyncio.sleep(1)
        app.answer = (D, "lag 2 s")
        joined.look_again()
        await asyncio.sleep(3)
        assert enrolment.said == [(D, "lag 1 s")]
        await asyncio.sleep(2)
        assert enrolment.said[-1] == (D, "lag 2 s")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param((U, "no database"), id="unhealthy"),
        pytest.param((HealthStatus.UNKNOWN, "no database"), id="unknown"),
        pytest.param(RuntimeError("no database"), id="a check that fails"),
    ],
)
async def test_an_app_that_is_not_well_is_not_registered_before_it_is(answer: object) -> None:
    enrolment, app = ScriptedEnrolment(), App()
    app.answer = answer
    async with keeping(membership(enrolment, app)) as joined:
        await asyncio.sleep(30)
        assert enrolment.calls == []
        assert "no database" in joined.why_not
        app.answer = (H, "")
        joined.look_again()
        await joined.registered()
        assert enrolment.times("register") == [30.0]


async def test_an_app_that_gets_ill_is_reported_and_kept() -> None:
    enrolment, app = ScriptedEnrolment(), App()
    async with keeping(membership(enrolment, app)) as joined:
        await asyncio.sleep(6)
        app.answer = (U, "no database")
        await asyncio.sleep(3)
        assert enrolment.said[-1] == (U, "no database")
        assert joined.is_registered
        await asyncio.sleep(5)
        assert enrolment.said[-2:] == [(U, "no database")] * 2


async def test_an_app_that_does_not_answer_about_its_health_is_not_well() -> None:
    enrolment, app = ScriptedEnrolment(), App()
    async with keeping(membership(enrolment, app)) as joined:
        await asyncio.sleep(6)
        app.answer = SILENCE
        joined.look_again()
        await asyncio.sleep(15.1)
        assert enrolment.said[-1] == (U, "no answer about the app's health within 15 s")
        assert len(enrolment.times("report")) >= 4  # beats went on meanwhile


async def test_without_heartbeat_it_registers_and_is_silent() -> None:
    enrolment = ScriptedEnrolment()
    async with keeping(membership(enrolment, heartbeat=False)) as joined:
        await asyncio.sleep(3600)
        assert enrolment.order == ["register"]
        assert joined.is_registered


async def test_the_first_thing_after_a_long_sleep_of_the_process_is_a_beat() -> None:
    enrolment = ScriptedEnrolment()
    loop = asyncio.get_running_loop()
    async with keeping(membership(enrolment)):
        await asyncio.sleep(3)
        sleep_of_the_process(loop, 300)
        await asyncio.sleep(0.001)
        assert enrolment.calls[-1][1] == "report"
        assert enrolment.times("report")[-1] == pytest.approx(303, abs=0.01)


async def test_a_call_that_the_process_overslept_is_repeated_without_a_pause() -> None:
    enrolment = ScriptedEnrolment(report=[True, SILENCE, True])
    loop = asyncio.get_running_loop()
    async with keeping(membership(enrolment)):
        await asyncio.sleep(6)  # in the middle of the second beat
        assert len(enrolment.times("report")) == 2
        sleep_of_the_process(loop, 300)
        await asyncio.sleep(0.001)
        assert len(enrolment.times("report")) == 3


async def test_when_it_was_forgotten_meanwhile_it_is_back_with_the_first_beat() -> None:
    enrolment = ScriptedEnrolment(report=[True, False, True])
    loop = asyncio.get_running_loop()
    async with keeping(membership(enrolment)) as joined:
        await asyncio.sleep(3)
        sleep_of_the_process(loop, 300)
        await asyncio.sleep(0.001)
        assert enrolment.order == ["register", "report", "report", "register"]
        assert joined.is_registered


async def test_nothing_is_sent_once_keeping_has_stopped() -> None:
    enrolment = ScriptedEnrolment()
    async with keeping(membership(enrolment)) as joined:
        await asyncio.sleep(3)
        await joined.stop_keeping()
        await joined.stop_keeping()  # asked twice is asked once
        said = len(enrolment.calls)
        await asyncio.sleep(600)
        assert len(enrolment.calls) == said


async def test_stopping_waits_for_a_call_that_is_under_way() -> None:
    enrolment = ScriptedEnrolment(register=[After(0.5, None)])
    async with keeping(membership(enrolment)) as joined:
        await asyncio.sleep(0.1)
        await joined.stop_keeping()
        assert asyncio.get_running_loop().time() == 0.5
        assert enrolment.in_call == 0


async def test_stopping_does_not_wait_long_for_a_call_that_hangs() -> None:
    enrolment = ScriptedEnrolment(register=[SILENCE])
    async with keeping(membership(enrolment)) as joined:
        await asyncio.sleep(0.1)
        await joined.stop_keeping()
        assert asyncio.get_running_loop().time() == pytest.approx(1.1)
        assert enrolment.in_call == 0
        assert joined.may_be_known
        assert not joined.was_known


async def test_stopping_before_keeping_began_sends_nothing() -> None:
    enrolment = ScriptedEnrolment()
    joined = membership(enrolment)
    await joined.stop_keeping()
    await keep_for(60, joined)
    assert enrolment.calls == []


async def test_a_bug_in_the_enrolment_is_not_swallowed() -> None:
    enrolment = ScriptedEnrolment(report=[TypeError("a bug")])
    with pytest.RaisesGroup(TypeError):
        await membership(enrolment).keep()


def moments() -> Iterator[tuple[str, ScriptedEnrolment, float]]:
    """Every await of `keep` by a moment at which it waits there."""
    yield "asking for the health", ScriptedEnrolment(), 0.0
    yield "registering", ScriptedEnrolment(register=[SILENCE]), 1.0
    yield "waiting to register again", ScriptedEnrolment(register=[away()]), 1.0
    yield "waiting for the first beat", ScriptedEnrolment(), 0.2
    yield "beating", ScriptedEnrolment(report=[SILENCE]), 2.0
    yield "waiting to beat again", ScriptedEnrolment(report=[away()]), 30.0
    yield "waiting for the next beat", ScriptedEnrolment(), 3.0
    yield "registering again", ScriptedEnrolment(register=[None, SILENCE], report=[False]), 2.0


@pytest.mark.parametrize(("where", "enrolment", "seconds"), [pytest.param(*m, id=m[0]) for m in moments()])
async def test_it_can_be_cancelled_at_every_await(where: str, enrolment: ScriptedEnrolment, seconds: float) -> None:
    async with asyncio.TaskGroup() as tasks:
        keeper = tasks.create_task(membership(enrolment).keep())
        await asyncio.sleep(seconds)
        keeper.cancel()
    assert keeper.cancelled()
    assert enrolment.in_call == 0


@pytest.mark.parametrize(("where", "enrolment", "seconds"), [pytest.param(*m, id=m[0]) for m in moments()])
async def test_keeping_can_be_stopped_at_every_await(where: str, enrolment: ScriptedEnrolment, seconds: float) -> None:
    async with keeping(membership(enrolment)) as joined:
        await asyncio.sleep(seconds)
        async with asyncio.timeout(1.5):
            await joined.stop_keeping()
        said = len(enrolment.calls)
        await asyncio.sleep(60)
        assert len(enrolment.calls) == said
        assert enrolment.in_call == 0


@pytest.mark.parametrize(("interval", "beat"), [(1, 10 / 3), (5, 10 / 3), (10, 5.0), (30, 35 / 3)])
def test_the_ttl_is_never_below_ten_seconds(interval: int, beat: float) -> None:
    member = type(MEMBER)(MEMBER.service, MEMBER.id, "a", 1, interval_seconds=interval)
    assert member.beat_seconds == pytest.approx(beat)


def test_waits_grow_are_bounded_and_differ() -> None:
    rng = random.Random(3)
    assert all(0.05 <= wait_seconds(1, rng) <= 0.1 for _ in range(50))
    assert all(2.5 <= wait_seconds(failures, rng) <= 5 for failures in (7, 20, 10_000))
    assert len({wait_seconds(4, rng) for _ in range(20)}) > 10


def sleep_of_the_process(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """SIGSTOP, and SIGCONT so much later: the clock went on, nothing else did."""
    loop._jumping.now += seconds  # type: ignore[attr-defined]
