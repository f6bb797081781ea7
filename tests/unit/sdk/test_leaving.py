"""How an instance leaves: the order of the steps, what each may cost, and what becomes of it when something is away."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.virtual_loop import run_virtual
from tests.unit.sdk.fakes import MEMBER, SILENCE, After, ScriptedEnrolment, away

from toska_mesh.errors import RegistryError
from toska_mesh.model import HealthStatus
from toska_mesh.sdk.enrolment import Applied, NobodyListensError
from toska_mesh.sdk.leaving import DEREGISTER, IDLE, LAST_NOTICE, MARK, NOTICE, LeaveReport, Leaving, Outcome
from toska_mesh.sdk.membership import Membership

BLIND = Applied(False, "this control plane cannot say", is_supported=False)
STEPS = (MARK, NOTICE, IDLE, DEREGISTER, LAST_NOTICE)


@asynccontextmanager
async def member(
    enrolment: ScriptedEnrolment, health: tuple[HealthStatus, str] | None = None
) -> AsyncIterator[Membership]:
    """Someone who has been in the mesh for 3 seconds."""

    async def ask() -> tuple[HealthStatus, str]:
        return health if health and asyncio.get_running_loop().time() > 1 else (HealthStatus.HEALTHY, "")

    joined = Membership(enrolment, MEMBER, ask, rng=random.Random(1))
    async with asyncio.TaskGroup() as tasks:
        keeper = tasks.create_task(joined.keep())
        await asyncio.sleep(3)
        enrolment.calls.clear()
        enrolment.said.clear()
        try:
            yield joined
        finally:
            keeper.cancel()


def lasting(seconds: float) -> Callable[[], Awaitable[None]]:
    """Requests in flight that end after so long."""

    async def idle() -> None:
        await asyncio.sleep(seconds)

    return idle


async def leave(joined: Membership, **options: object) -> LeaveReport:
    return await Leaving(joined, "SIGTERM", rng=random.Random(1), **options).run()  # type: ignore[arg-type]


def outcomes(report: LeaveReport) -> dict[str, str]:
    return {step.name: step.outcome.value for step in report.steps}


async def test_it_marks_waits_finishes_deregisters_and_waits_once_more() -> None:
    enrolment = ScriptedEnrolment(wait_applied=[After(0.1, Applied(True, gateways=("a", "b")))])
    async with member(enrolment) as joined:
        report = await leave(joined, idle=lasting(2))
        assert enrolment.calls == [
            (3.0, "report"),
            (3.0, "wait_applied"),
            (pytest.approx(5.1), "deregister"),
            (pytest.approx(5.1), "wait_applied"),
        ]
        assert enrolment.said == [(HealthStatus.DEGRADED, "draining: SIGTERM")]
        assert outcomes(report) == dict.fromkeys(STEPS, "done")
        assert report.is_lossless
        assert report.seconds == pytest.approx(2.2)
        assert report.step(NOTICE).words == "applied by 2 gateways"
        assert not joined.is_registered
        assert joined.why_not == "left"


async def test_while_requests_are_in_flight_beats_keep_saying_that_it_drains() -> None:
    enrolment = ScriptedEnrolment()
    async with member(enrolment) as joined:
        await leave(joined, idle=lasting(12))
        assert enrolment.times("report") == [3.0, pytest.approx(8.0), pytest.approx(13.0)]
        assert set(enrolment.said) == {(HealthStatus.DEGRADED, "draining: SIGTERM")}
        await asyncio.sleep(60)
        assert enrolment.order[-2:] == ["deregister", "wait_applied"]  # nobody beats for one who has left


async def test_an_unhealthy_app_is_not_made_the_better_choice_by_draining() -> None:
    enrolment = ScriptedEnrolment()
    async with member(enrolment, (HealthStatus.UNHEALTHY, "no database")) as joined:
        await leave(joined)
        assert enrolment.said == [(HealthStatus.UNHEALTHY, "draining: SIGTERM")]


@pytest.mark.parametrize(
    ("method", "script"),
    [
        pytest.param("report", [away(), away(), True], id="away when marking"),
        pytest.param("report", [SILENCE, True], id="silent when marking"),
        pytest.param("wait_applied", [away(), away(), Applied(True)], id="away when waiting"),
        pytest.param("deregister", [away(), away(), True], id="away when deregistering"),
        pytest.param("deregister", [SILENCE, True], id="silent when deregistering"),
    ],
)
async def test_a_short_outage_at_any_step_loses_nothing(method: str, script: list[object]) -> None:
    enrolment = ScriptedEnrolment()
    async with member(enrolment) as joined:
        enrolment.script(method, script)
        report = await leave(joined)
        assert report.is_lossless, report.fields()
        assert outcomes(report) == dict.fromkeys(STEPS, "done")


async def test_requests_that_outlast_their_time_are_the_hosts_to_finish() -> None:
    async with member(ScriptedEnrolment()) as joined:
        report = await leave(joined, idle=lasting(1000))
        assert report.step(IDLE).outcome is Outcome.LEFT
        assert report.is_lossless


@pytest.mark.parametrize("trouble", [away("gone for good"), SILENCE], ids=["away", "silent"])
@pytest.mark.parametrize("drain_seconds", [0.5, 5.0, 30.0])
async def test_when_nobody_answers_leaving_ends_in_time_and_says_what_it_gave_up(
    trouble: object, drain_seconds: float
) -> None:
    enrolment = ScriptedEnrolment()
    async with member(enrolment) as joined:
        for method in ("report", "wait_applied", "deregister"):
            enrolment.script(method, [trouble])
        report = await leave(joined, drain_seconds=drain_seconds)
        assert outcomes(report) == {
            MARK: "given up",
            NOTICE: "skipped",
            IDLE: "done",
            DEREGISTER: "given up",
            LAST_NOTICE: "skipped",
        }
        assert report.seconds < drain_seconds
        assert not report.is_lossless
        assert report.step(MARK).words in ("gone for good", "no answer in time")
        assert joined.may_be_known


def nobody(is_here: bool = True) -> NobodyListensError:
    return NobodyListensError("nobody listens at discovery=localhost:8080", is_here=is_here)


async def leave_without(trouble: object, asked_at: Callable[[], float] = lambda: -100.0) -> LeaveReport:
    """Leave while every step meets the same trouble."""
    enrolment = ScriptedEnrolment()
    async with member(enrolment) as joined:
        for method in ("report", "wait_applied", "deregister"):
            enrolment.script(method, [trouble])
        return await leave(joined, drain_seconds=30, asked_at=asked_at)


async def test_a_mesh_that_is_gone_from_this_machine_is_not_waited_for_to_the_end() -> None:
    report = await leave_without(nobody())
    assert 5 <= report.seconds <= 6
    assert [step.name for step in report.given_up] == [MARK, DEREGISTER]
    assert report.step(MARK).words == "nobody listens at discovery=localhost:8080 for 5 s, and no request came lately"
    assert report.step(DEREGISTER).seconds < 0.1  # the same silence goes on


async def test_it_is_waited_for_where_only_a_network_says_that_nobody_listens() -> None:
    assert (await leave_without(nobody(is_here=False))).seconds > 16


async def test_it_is_waited_for_as_long_as_gateways_send_requests() -> None:
    assert (await leave_without(nobody(), lambda: asyncio.get_running_loop().time() // 3 * 3)).seconds > 16


async def test_it_is_waited_for_by_a_service_that_is_asked_rarely() -> None:
    assert (await leave_without(nobody(), lambda: -20.0)).seconds > 16


@pytest.mark.parametrize("other", [away("busy"), True], ids=["another trouble", "an answer"])
async def test_only_an_unbroken_silence_counts(other: object) -> None:
    enrolment = ScriptedEnrolment()
    async with member(enrolment) as joined:
        enrolment.script("report", [*[nobody()] * 5, other, *[nobody()] * 5, True])
        enrolment.script("deregister", [*[nobody()] * 5, True])
        report = await leave(joined)
        assert report.is_lossless


async def test_a_restart_of_discovery_is_outlasted_whoever_listens() -> None:
    enrolment = ScriptedEnrolment()
    async with member(enrolment) as joined:
        enrolment.script("report", [nobody()])
        asyncio.get_running_loop().call_later(4.0, enrolment.script, "report", [True])
        report = await leave(joined)
        assert report.is_lossless
        assert 4 <= report.seconds <= 5.1


async def test_what_is_waited_for_is_said_after_a_second(caplog: pytest.LogCaptureFixture) -> None:
    report = await leave_without(away("restarting"))
    told = [vars(record)["fields"] for record in caplog.records if vars(record)["event"] == "leaving_waits"]
    assert [fields["waits_for"] for fields in told] == [
        "the mesh to hear that this instance is draining",
        "the mesh to forget this instance",
    ]
    assert told[0]["reason"] == "restarting"
    assert told[0]["hint"] == "the same signal again leaves at once"
    assert told[0]["at_most_seconds"] == pytest.approx(report.step(MARK).seconds - 1, abs=0.1)


async def test_a_gateway_that_is_slow_to_apply_is_said_to_be_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    async with member(ScriptedEnrolment(wait_applied=[After(3, Applied(True)), Applied(True)])) as joined:
        await leave(joined)
    (told,) = [vars(record)["fields"] for record in caplog.records if vars(record)["event"] == "leaving_waits"]
    assert told["waits_for"] == "the gateways to have applied that this instance is draining"
    assert told["reason"] == "no answer yet"


async def test_a_wait_that_belongs_to_every_leave_is_said_but_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with member(ScriptedEnrolment(wait_applied=[BLIND])) as joined:
        await leave(joined, drain_seconds=60)
    (told,) = [record for record in caplog.records if vars(record)["event"] == "leaving_waits"]
    assert told.levelname == "INFO"


async def test_one_that_was_refused_at_the_door_leaves_without_a_wait() -> None:
    enrolment = ScriptedEnrolment(register=[nobody(is_here=False)])
    async with member(enrolment) as joined:
        report = await leave(joined)
        assert report.seconds == 0
        assert report.is_lossless
        assert enrolment.calls == []


async def test_every_step_leaves_time_to_those_behind_it() -> None:
    enrolment = ScriptedEnrolment()
    async with member(enrolment) as joined:
        enrolment.script("wait_applied", [After(1000, Applied(True))])
        report = await leave(joined, idle=lasting(1000), drain_seconds=30)
        assert outcomes(report) == {
            MARK: "done",
            NOTICE: "given up",
            IDLE: "left to the host",
            DEREGISTER: "done",
            LAST_NOTICE: "given up",
        }
        assert report.step(NOTICE).seconds == pytest.approx(15)
        assert report.step(IDLE).words == "requests are still in flight"
        assert 30 - report.seconds > 3  # the host's, for what is in flight


async def test_a_gateway_that_stays_behind_is_named() -> None:
    behind = Applied(False, "1 of 2 gateways has not applied it: b", ("a", "b"), ("b",))
    enrolment = ScriptedEnrolment(wait_applied=[behind, Applied(True, gateways=("a", "b"))])
    async with member(enrolment) as joined:
        report = await leave(joined)
        assert [step.name for step in report.given_up] == [NOTICE]
        assert report.step(NOTICE).words == "1 of 2 gateways has not applied it: b"
        assert report.step(LAST_NOTICE).outcome is Outcome.DONE


async def test_where_gateways_cannot_be_asked_it_waits_as_long_as_they_may_take() -> None:
    enrolment = ScriptedEnrolment(wait_applied=[BLIND])
    async with member(enrolment) as joined:
        report = await leave(joined, drain_seconds=60, notice_seconds=31)
        assert enrolment.order == ["report", "wait_applied", *["report"] * 6, "deregister"]
        assert report.step(NOTICE).seconds == pytest.approx(31)
        assert report.step(LAST_NOTICE).outcome is Outcome.SKIPPED  # they send nothing to what is not healthy
        assert report.is_lossless


async def test_a_blind_wait_that_is_cut_short_is_called_so() -> None:
    enrolment = ScriptedEnrolment(wait_applied=[BLIND])
    async with member(enrolment) as joined:
        report = await leave(joined, drain_seconds=12, notice_seconds=31)
        assert report.step(NOTICE).seconds == pytest.approx(10)
        assert report.step(NOTICE).outcome is Outcome.GIVEN_UP
        assert "less than the 31 s" in report.step(NOTICE).words


async def test_where_the_question_is_refused_it_waits_blindly_too() -> None:
    enrolment = ScriptedEnrolment(wait_applied=[RegistryError("permission denied")])
    async with member(enrolment) as joined:
        report = await leave(joined, drain_seconds=60, notice_seconds=5)
        assert report.step(NOTICE).seconds == pytest.approx(5)
        assert "permission denied" in report.step(NOTICE).words


async def test_one_that_nobody_knows_any_more_leaves_without_being_registered_again() -> None:
    enrolment = ScriptedEnrolment()
    async with member(enrolment) as joined:
        enrolment.script("report", [False])
        enrolment.script("deregister", [False])
        report = await leave(joined, idle=lasting(12))
        assert "register" not in enrolment.order
        assert enrolment.order.count("report") == 1
        assert report.is_lossless
        assert report.step(MARK).words == "nobody knows this instance any more"


async def test_one_that_was_never_registered_only_finishes_what_is_in_flight() -> None:
    enrolment = ScriptedEnrolment()
    joined = Membership(enrolment, MEMBER)
    report = await leave(joined, idle=lasting(2))
    assert enrolment.calls == []
    assert report.seconds == 2
    assert report.is_lossless


@pytest.mark.parametrize("trouble", [away(), SILENCE], ids=["away", "silent"])
async def test_one_whose_registration_was_never_answered_says_one_word_and_goes(trouble: object) -> None:
    enrolment = ScriptedEnrolment(register=[trouble], deregister=[trouble])
    async with member(enrolment) as joined:
        report = await leave(joined)
        assert report.seconds <= 2.1  # a call under way, and the word
        assert "deregister" in enrolment.order
        assert report.is_lossless


async def test_a_registration_that_was_taken_without_an_answer_is_taken_back() -> None:
    enrolment = ScriptedEnrolment(register=[SILENCE])
    async with member(enrolment) as joined:
        report = await leave(joined)
        assert report.step(DEREGISTER).outcome is Outcome.DONE
        assert not joined.may_be_known


@pytest.mark.parametrize("step", [MARK, NOTICE, IDLE, DEREGISTER, LAST_NOTICE])
async def test_told_a_second_time_it_leaves_at_once_but_not_without_a_word(step: str) -> None:
    enrolment = ScriptedEnrolment()
    hurry = asyncio.Event()
    async with member(enrolment) as joined:
        slow = After(1000, Applied(True))
        if step == MARK:
            enrolment.script("report", [SILENCE])
        elif step == DEREGISTER:
            enrolment.script("deregister", [SILENCE])
        elif step in (NOTICE, LAST_NOTICE):
            enrolment.script("wait_applied", [slow] if step == NOTICE else [Applied(True), slow])
        asyncio.get_running_loop().call_later(0.5, hurry.set)
        report = await leave(joined, idle=lasting(1000 if step == IDLE else 0), hurry=hurry)
        assert report.seconds <= 0.5 + 1.0
        assert report.is_hurried
        assert "deregister" in enrolment.order
        assert report.step(step).outcome is Outcome.GIVEN_UP
        assert [one.name for one in report.steps] == list(STEPS)


async def test_without_time_to_drain_it_still_says_that_it_goes() -> None:
    enrolment = ScriptedEnrolment()
    async with member(enrolment) as joined:
        report = await leave(joined, drain_seconds=0, idle=lasting(1000))
        assert enrolment.order == ["deregister"]
        assert report.seconds < 1


async def test_the_report_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with member(ScriptedEnrolment()) as joined:
        caplog.clear()
        await leave(joined, idle=lasting(2))
    (record,) = caplog.records
    assert vars(record)["event"] == "left"
    fields = record.__dict__["fields"]
    assert fields["instance"] == "orders-1"
    assert fields["notice"] == "done: applied by 1 gateway"
    assert fields["idle"] == "done in 2.000 s"


async def test_what_was_given_up_makes_it_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with member(ScriptedEnrolment(deregister=[away("restarting")])) as joined:
        await leave(joined, drain_seconds=3)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_bug_in_the_host_is_not_swallowed() -> None:
    async def broken() -> None:
        raise TypeError("a bug")

    joined = Membership(ScriptedEnrolment(), MEMBER)
    with pytest.RaisesGroup(TypeError):
        await leave(joined, idle=broken)


@pytest.mark.parametrize("step", STEPS)
async def test_it_can_be_cancelled_at_every_step(step: str) -> None:
    enrolment = ScriptedEnrolment()
    async with member(enrolment) as joined:
        if step == MARK:
            enrolment.script("report", [SILENCE])
        elif step == DEREGISTER:
            enrolment.script("deregister", [SILENCE])
        elif step in (NOTICE, LAST_NOTICE):
            slow = After(1000, Applied(True))
            enrolment.script("wait_applied", [slow] if step == NOTICE else [Applied(True), slow])
        async with asyncio.TaskGroup() as tasks:
            leaving = tasks.create_task(leave(joined, idle=lasting(1000 if step == IDLE else 0)))
            await asyncio.sleep(0.5)
            leaving.cancel()
        assert leaving.cancelled()
        assert enrolment.in_call == 0


@given(
    st.lists(st.sampled_from(["good", "away", "silent", "refused", "slow"]), min_size=12, max_size=12),
    st.just(0.0) | st.floats(0.1, 60),
    st.floats(0, 60),
    st.none() | st.floats(0, 60),
)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_it_ends_in_time_and_in_order(
    answers: list[str], drain_seconds: float, in_flight_seconds: float, hurry_after: float | None
) -> None:
    report, enrolment = run_virtual(lambda: leave_through(answers, drain_seconds, in_flight_seconds, hurry_after))
    longest = drain_seconds if hurry_after is None else min(drain_seconds, hurry_after + 1.0)
    assert report.seconds <= max(longest, 1.0) + 0.001
    assert [step.name for step in report.steps] == list(STEPS)
    order = enrolment.order
    assert "register" not in order
    assert "deregister" in order  # at least a word
    assert set(order[order.index("deregister") :]) <= {"deregister", "wait_applied"}
    assert enrolment.in_call == 0


async def leave_through(
    answers: list[str], drain_seconds: float, in_flight_seconds: float, hurry_after: float | None
) -> tuple[LeaveReport, ScriptedEnrolment]:
    def script(good: object, kinds: list[str]) -> list[object]:
        made = {
            "good": good,
            "away": away(),
            "silent": SILENCE,
            "refused": RegistryError("no"),
            "slow": After(3.0, good),
        }
        return [made[kind] for kind in kinds]

    enrolment, hurry = ScriptedEnrolment(), asyncio.Event()
    async with member(enrolment) as joined:
        enrolment.script("report", script(True, answers[:4]))
        enrolment.script("wait_applied", script(Applied(True), answers[4:8]))
        enrolment.script("deregister", script(True, answers[8:]))
        if hurry_after is not None:
            asyncio.get_running_loop().call_later(hurry_after, hurry.set)
        report = await leave(joined, drain_seconds=drain_seconds, idle=lasting(in_flight_seconds), hurry=hurry)
        return report, enrolment
