"""One call through as many tries as it takes: what is repeated and where, what counts against whom, when it ends."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.unit.router.build import instance
from tests.unit.sdk.scripted_calls import (
    ORDERS,
    ScriptedReply,
    Step,
    answers,
    hangs,
    refuses,
    resets,
    swallows,
    world,
)

from toska_mesh.errors import (
    CircuitOpenError,
    NoInstanceError,
    UpstreamConnectError,
    UpstreamError,
    UpstreamTimeoutError,
)
from toska_mesh.guard.patience import Patience
from toska_mesh.model import HealthStatus, ServiceName
from toska_mesh.resilience import BreakerPolicy, Deadline, Outcome, RetryBudget, RetryPolicy, State
from toska_mesh.sdk import context as contexts
from toska_mesh.sdk.bodies import NOTHING, Upload, make_body
from toska_mesh.sdk.calls import Call
from toska_mesh.sdk.transport import Request

PATIENT_BREAKER = BreakerPolicy(failure_threshold=1000)


def now() -> float:
    return asyncio.get_running_loop().time()


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_instances_take_turns() -> None:
    async with world("a", "b") as mesh:
        replies = [await mesh.call() for _ in range(4)]
        assert [reply.given for reply in replies] == [("a", 1), ("b", 1), ("a", 1), ("b", 1)]
        assert mesh.outcomes == [("200", 1)] * 4
        mesh.assert_balanced()


# -- what is repeated


@pytest.mark.parametrize(
    ("method", "body", "fault", "expected"),
    [
        pytest.param("GET", b"", refuses(), "b", id="a GET that nobody took"),
        pytest.param("POST", b"x", refuses(), "b", id="a POST of which nothing was sent"),
        pytest.param("POST", b"x" * 200_000, refuses(), "b", id="a large POST of which nothing was sent"),
        pytest.param("GET", b"", resets(), "b", id="a GET whose connection broke"),
        pytest.param("PUT", b"x" * 65_536, resets(), "b", id="a PUT with a body that is kept"),
        pytest.param("GET", b"", answers(503), "b", id="a GET that was told 503"),
        pytest.param("GET", b"", answers(502), "b", id="a GET that was told 502"),
        pytest.param("GET", b"", answers(504), "b", id="a GET that was told 504"),
        pytest.param("GET", b"", answers(500), 500, id="a 500 is an answer"),
        pytest.param("GET", b"", answers(429), 429, id="a 429 is an answer"),
        pytest.param("POST", b"x", answers(503), 503, id="a POST that was told 503 has its answer"),
        pytest.param("POST", b"x", resets(), UpstreamConnectError, id="a POST that may have been carried out"),
        pytest.param("PUT", b"x" * 65_537, resets(), UpstreamConnectError, id="a PUT too large to be kept"),
        pytest.param("PUT", b"x" * 65_537, answers(503), 503, id="a large PUT that was told 503 has its answer"),
    ],
)
async def test_what_is_repeated_at_another_instance(method: str, body: bytes, fault: Step, expected: Any) -> None:
    async with world("a", "b") as mesh:
        mesh.scripts["a"].append(fault)
        sent = await make_body(body or None)
        if isinstance(expected, type):
            with pytest.raises(expected, match="the last at a "):
                await mesh.call(method, body=sent)
            assert mesh.asked == ["a"]
        elif isinstance(expected, int):
            reply = await mesh.call(method, body=sent)
            assert (reply.status, reply.given) == (expected, ("a", 1))
        else:
            reply = await mesh.call(method, body=sent)
            assert reply.given == (expected, 2)
        assert now() == 0.0, "the switch to another instance does not wait"
        mesh.assert_balanced()


async def test_a_key_keeps_its_instance_until_that_fails() -> None:
    async with world("a", "b", "c", lb_strategy="IPHash") as mesh:
        (home,) = {(await mesh.call(key="user-7")).given[0] for _ in range(5)}
        mesh.scripts[home] += [resets()]
        instance, attempts = (await mesh.call(key="user-7")).given
        assert (instance != home, attempts) == (True, 2)
        assert (await mesh.call(key="user-7")).given == (home, 1)


async def test_a_caller_may_say_that_a_post_can_be_repeated_and_a_get_cannot() -> None:
    async with world("a", "b") as mesh:
        mesh.scripts["a"] += [resets(), resets()]
        assert (await mesh.call("POST", idempotent=True)).given == ("b", 2)
        with pytest.raises(UpstreamConnectError):
            await mesh.call("GET", idempotent=False)


async def test_a_single_instance_is_tried_again_after_growing_pauses() -> None:
    async with world("a", breaker=PATIENT_BREAKER) as mesh:
        mesh.scripts["a"] += [refuses(), refuses(), refuses()]
        patience = Patience(retry=RetryPolicy(jitter_seconds=0.0))
        assert (await mesh.call(patience=patience)).given == ("a", 4)
        assert now() == pytest.approx(0.2 + 0.4 + 0.8)


async def test_the_last_failing_answer_is_given_as_it_is() -> None:
    async with world("a", "b", breaker=PATIENT_BREAKER) as mesh:
        for id in "ab":
            mesh.scripts[id] += [answers(503)] * 2
        reply = await mesh.call()
        assert (reply.status, mesh.asked) == (503, ["a", "b", "a", "b"])
        assert not reply.is_dropped


async def test_a_streamed_body_is_repeated_while_its_beginning_is_kept() -> None:
    async with world("a", "b") as mesh:
        mesh.scripts["a"] += [resets()]
        reply = await mesh.call("PUT", body=Upload(chunks(b"abc", b"def")))
        assert reply.given == ("b", 2)


async def test_a_caller_whose_body_fails_gets_its_own_error_and_blames_nobody() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"abc"
        raise LookupError("no such file")

    async with world("a", "b", breaker=BreakerPolicy(failure_threshold=1)) as mesh:

        async def reports_a_broken_body(request: Any, progress: Any) -> Any:
            try:
                return await answers()(request, progress)
            except LookupError as error:
                raise ConnectionError("Failed to send bytes") from error

        def as_the_transport_says_it(request: Any, progress: Any) -> Any:
            return _translated(reports_a_broken_body, request, progress)

        mesh.scripts["a"].append(as_the_transport_says_it)
        with pytest.raises(LookupError, match="no such file"):
            await mesh.call("PUT", body=Upload(broken()))
        assert mesh.target("a").circuit.is_clean
        mesh.assert_balanced()


async def _translated(step: Any, request: Any, progress: Any) -> Any:
    from toska_mesh.resilience import Failure
    from toska_mesh.sdk.transport import TryFailedError

    try:
        return await step(request, progress)
    except ConnectionError as error:
        raise TryFailedError(Failure.RESET, str(error)) from error


async def test_retries_stay_within_their_budget() -> None:
    async with world("a", breaker=PATIENT_BREAKER) as mesh:
        mesh.sender.budget = RetryBudget(ratio=0.0, floor_per_second=0.2)
        mesh.scripts["a"] += [refuses()] * 20
        patience = Patience(retry=RetryPolicy(base_seconds=0.0, jitter_seconds=0.0))
        for _ in range(4):
            with pytest.raises(UpstreamConnectError):
                await mesh.call(patience=patience)
        assert len(mesh.asked) == 4 + 2


# -- deadlines


async def test_one_deadline_covers_all_tries() -> None:
    async with world("a", "b", "c", ticking=False) as mesh:
        for id in "abc":
            mesh.scripts[id].append(hangs())
        patience = Patience(0.7, 1.0, RetryPolicy())
        with pytest.raises(UpstreamTimeoutError, match="failed after 2 tries in 1 s") as caught:
            await mesh.call(patience=patience)
        assert now() == pytest.approx(1.0)
        assert mesh.asked == ["a", "b"]
        assert (caught.value.service, caught.value.instance, caught.value.attempts) == (ORDERS, "b", 2)
        assert "tried before: a: no answer in time" in str(caught.value)


async def test_a_try_that_is_late_counts_against_its_instance_and_one_cut_short_by_others_does_not() -> None:
    async with world("a", ticking=False, breaker=BreakerPolicy(failure_threshold=1)) as mesh:
        mesh.scripts["a"] += [hangs(), hangs()]
        with pytest.raises(UpstreamTimeoutError):
            await mesh.call(inherited=now() + 0.5)
        assert mesh.target("a").circuit.is_clean
        with pytest.raises(UpstreamTimeoutError):
            await mesh.call(own_seconds=0.5)
        assert mesh.target("a").circuit.state is State.OPEN


async def test_a_call_for_somebody_who_has_given_up_is_not_made() -> None:
    async with world("a") as mesh:
        await asyncio.sleep(1.0)
        with pytest.raises(UpstreamTimeoutError, match="not called"):
            await mesh.call(inherited=now())
        assert mesh.asked == []


async def test_a_pause_that_would_outlast_the_deadline_is_not_begun() -> None:
    async with world("a") as mesh:
        mesh.scripts["a"].append(refuses())
        with pytest.raises(UpstreamConnectError):
            await mesh.call(own_seconds=0.1)
        assert now() == 0.0


async def test_uploading_takes_its_time_and_the_wait_begins_at_its_end() -> None:
    async def slow_body() -> AsyncIterator[bytes]:
        for _ in range(10):
            await asyncio.sleep(2.0)
            yield b"x" * 10_000

    async with world("a", "b") as mesh:
        mesh.scripts["a"] += [answers(after=0.5)]
        patience = Patience(1.0, 1.0, RetryPolicy())
        reply = await mesh.call("POST", body=Upload(slow_body()), patience=patience, own_seconds=60.0)
        assert (reply.given, now()) == (("a", 1), pytest.approx(20.5))
        assert not mesh.target("a").is_suspect


async def test_the_first_word_about_a_service_is_waited_for_until_the_deadline() -> None:
    async with world() as mesh:
        mesh.source.trouble = "discovery does not answer"
        with pytest.raises(NoInstanceError, match="nothing is known of it after 2 s: discovery does not answer"):
            await mesh.call(own_seconds=2.0)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(_as_coroutine(mesh.call(own_seconds=2.0)))
            await asyncio.sleep(1.0)
            mesh.instances("a")
            assert (await waiting).given == ("a", 1)
        assert now() == pytest.approx(3.0)


async def test_the_wait_for_the_first_word_is_not_the_instance_s_silence() -> None:
    async with world() as mesh:
        mesh.scripts["a"].append(answers(after=3.0))
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(_as_coroutine(mesh.call(patience=Patience(4.0, 20.0, RetryPolicy()))))
            await asyncio.sleep(8.0)
            mesh.instances("a", "b")
            await asyncio.sleep(1.0)
            assert not mesh.target("a").is_suspect
            assert (await waiting).given == ("a", 1)
        assert now() == pytest.approx(11.0)


async def _as_coroutine(call: Any) -> Any:
    return await call


# -- who is asked at all


async def test_without_anybody_to_ask_the_error_says_why() -> None:
    async with world() as mesh:
        mesh.publish(instance("a", HealthStatus.UNHEALTHY), instance("b", scheme="tcp"))
        with pytest.raises(NoInstanceError) as caught:
            await mesh.call()
        assert "a is Unhealthy by the registry" in str(caught.value)
        assert "b is scheme tcp is not served over HTTP/1.1" in str(caught.value)
        mesh.publish(instance("a", service="others"))
        with pytest.raises(NoInstanceError, match="there is no such service"):
            await mesh.call()


async def test_with_every_breaker_open_the_error_says_when_to_come_back() -> None:
    async with world("a", "b", breaker=BreakerPolicy(failure_threshold=1)) as mesh:
        for id in "ab":
            mesh.scripts[id] += [answers(503)] * 2
        assert (await mesh.call(patience=Patience(retry=RetryPolicy(count=0)))).status == 503
        with pytest.raises(CircuitOpenError, match="breakers of all 2 instances are open") as caught:
            await mesh.call()  # the second instance fails, and there is nobody left
        assert caught.value.retry_after_seconds == pytest.approx(20.0, abs=0.5)  # less the pause before the retry
        assert mesh.asked == ["a", "b"]
        with pytest.raises(CircuitOpenError):
            await mesh.call()
        assert mesh.asked == ["a", "b"], "nobody is asked"
        mesh.assert_balanced()


# -- breakers


async def test_three_failures_take_an_instance_out_and_one_trial_brings_it_back() -> None:
    async with world("a", "b") as mesh:
        mesh.scripts["a"] += [resets()] * 3
        for _ in range(8):
            await mesh.call()
        assert mesh.asked.count("a") == 3
        assert mesh.target("a").circuit.state is State.OPEN
        await asyncio.sleep(21.0)  # the guard's probe is answered
        mesh.asked.clear()
        for _ in range(4):
            await mesh.call()
        assert mesh.asked.count("a") == 2
        assert mesh.target("a").circuit.is_clean


async def test_one_call_counts_at_most_once_per_instance() -> None:
    async with world("a") as mesh:
        mesh.scripts["a"] += [resets()] * 4
        with pytest.raises(UpstreamConnectError, match="4 tries"):
            await mesh.call(patience=Patience(retry=RetryPolicy(count=3, base_seconds=0.0, jitter_seconds=0.0)))
        assert mesh.target("a").circuit.state is State.CLOSED
        assert mesh.target("a").circuit.breaker.failures == 1


async def test_an_answer_that_breaks_off_is_a_failure_and_one_left_by_the_caller_is_none() -> None:
    async with world("a") as mesh:
        mesh.scripts["a"] += [answers(ends=False)] * 2
        first, second = await mesh.call(), await mesh.call()
        assert mesh.target("a").in_flight == 2
        first.end(Outcome.CANCELLED)
        assert mesh.target("a").circuit.is_clean
        second.end(Outcome.FAILURE)
        assert mesh.target("a").circuit.breaker.failures == 1
        mesh.assert_balanced()


async def test_the_trial_is_made_by_a_call_that_can_be_repeated() -> None:
    async with world("a", "b", breaker=BreakerPolicy(failure_threshold=1, open_seconds=1.0)) as mesh:
        mesh.scripts["a"].append(resets())
        await mesh.call()
        await asyncio.sleep(2.0)
        mesh.asked.clear()
        for _ in range(4):
            await mesh.call("POST")
        assert set(mesh.asked) == {"b"}
        await mesh.call()
        await mesh.call()
        assert "a" in mesh.asked


async def test_after_a_failed_trial_the_next_one_comes_as_soon() -> None:
    async with world("a", "b", breaker=BreakerPolicy(failure_threshold=1, open_seconds=1.0)) as mesh:
        mesh.scripts["a"] = [resets()] * 100
        for _ in range(120):
            assert (await mesh.call()).status == 200
            await asyncio.sleep(0.1)
        assert 7 <= mesh.asked.count("a") <= 12, "the first failure, and one trial in each second or a little more"


async def test_a_trial_whose_caller_leaves_frees_its_place() -> None:
    async with world("a", breaker=BreakerPolicy(failure_threshold=1, open_seconds=1.0)) as mesh:
        mesh.scripts["a"] += [answers(503), hangs()]
        await mesh.call(patience=Patience(retry=RetryPolicy(count=0)))
        await asyncio.sleep(2.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await mesh.call()
        assert (await mesh.call()).status == 200
        assert mesh.target("a").circuit.is_clean


# -- silence


async def test_a_silent_instance_is_left_for_another_when_it_answers_no_probe_either() -> None:
    async with world("a", "b") as mesh:
        for _ in range(40):
            await mesh.call()
        mesh.scripts["a"].append(hangs())
        mesh.prober.silent.add("a")
        began = now()
        reply = await mesh.call()
        assert reply.given == ("b", 2)
        assert 1.0 <= now() - began < 2.5
        assert mesh.target("a").is_suspect
        assert mesh.target("a").circuit.is_clean, "silence is no failure"
        assert [(await mesh.call()).given[0] for _ in range(3)] == ["b", "b", "b"]
        mesh.assert_balanced()


async def test_a_post_that_a_silent_instance_holds_waits_for_it() -> None:
    async with world("a", "b") as mesh:
        mesh.scripts["a"].append(answers(after=8.0))
        mesh.prober.silent.add("a")
        assert (await mesh.call("POST")).given == ("a", 1)
        assert now() == pytest.approx(8.0)
        assert not mesh.target("a").is_suspect


async def test_a_dial_that_takes_too_long_is_left_for_another_whatever_the_method() -> None:
    async with world("a", "b") as mesh:
        for _ in range(40):
            await mesh.call()
        mesh.scripts["a"].append(swallows())
        began = now()
        assert (await mesh.call("POST")).given == ("b", 2)
        assert 1.0 <= now() - began < 1.5


@pytest.mark.parametrize("others", ["cold", "known and slow"])
async def test_how_long_a_dial_may_take_has_nothing_to_do_with_the_service_s_habits(others: str) -> None:
    async with world("a", "b") as mesh:
        for _ in range(0 if others == "cold" else 40):
            for name in ("a", "b"):
                mesh.scripts[name].append(answers(after=0.5))
            await mesh.call()
        mesh.scripts["a"] = [swallows()]
        mesh.scripts["b"] = []
        began = now()
        assert (await mesh.call("POST")).given == ("b", 2)
        assert 1.0 <= now() - began < 1.2
        assert mesh.target("a").is_suspect
        mesh.assert_balanced()


async def test_a_dial_is_not_waited_for_at_an_instance_that_answers_on_its_other_connections() -> None:
    async with world("a", "b") as mesh:
        mesh.scripts["a"] = [swallows(), *[answers(after=0.1)] * 100]
        async with asyncio.TaskGroup() as tasks:
            dialling = tasks.create_task(_as_coroutine(mesh.call()))
            await asyncio.sleep(0)
            for _ in range(40):
                await mesh.call()
                assert not mesh.target("a").is_suspect, "it answers"
            assert (await dialling).given == ("b", 2)
        assert now() < 3.0
        mesh.assert_balanced()


async def test_a_dial_that_no_other_instance_could_take_is_waited_for() -> None:
    async with world("a") as mesh:

        async def connects_late(request: Any, progress: Any) -> ScriptedReply:
            await asyncio.sleep(3.0)
            progress.connected()
            return ScriptedReply(200)

        mesh.scripts["a"] = [connects_late]
        assert (await mesh.call()).given == ("a", 1)
        assert now() == pytest.approx(3.0)
        assert not mesh.target("a").is_suspect


async def test_a_service_that_does_one_thing_at_a_time_becomes_known_by_its_silence() -> None:
    """It answers no probe while it works, so the first calls move on and on. They must not do so for ever."""
    async with world("a", "b", "c") as mesh:

        def works(name: str) -> Step:
            async def step(request: Any, progress: Any) -> ScriptedReply:
                progress.connected()
                mesh.prober.silent.add(name)
                asyncio.get_running_loop().call_later(4.0, mesh.prober.silent.discard, name)
                await asyncio.sleep(4.0)
                return ScriptedReply(200)

            return step

        for name in ("a", "b", "c"):
            mesh.scripts[name] = [works(name)] * 100
        answered = []
        for _ in range(5):
            try:
                answered.append((await mesh.call(own_seconds=5.0)).given[1])
            except UpstreamTimeoutError:
                answered.append(0)
            await asyncio.sleep(20.0)
        assert answered[1:] == [1, 1, 1, 1]
        mesh.assert_balanced()


async def test_when_everybody_is_only_suspect_the_least_loaded_one_is_asked() -> None:
    async with world("a") as mesh:
        for _ in range(40):
            await mesh.call()
        mesh.scripts["a"].append(answers(after=3.0))
        async with asyncio.TaskGroup() as tasks:
            slow = tasks.create_task(_as_coroutine(mesh.call()))
            await asyncio.sleep(2.0)
            assert mesh.target("a").is_suspect
            assert (await mesh.call()).status == 200
            assert (await slow).status == 200


# -- being cancelled


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        pytest.param(swallows(), 0.5, id="dialling"),
        pytest.param(hangs(), 0.5, id="waiting"),
        pytest.param(refuses(), 0.15, id="pausing before another try"),
    ],
)
async def test_cancelled_at_any_await_it_leaves_nothing_behind(fault: Step, seconds: float) -> None:
    async with world("a", breaker=BreakerPolicy(failure_threshold=2)) as mesh:
        mesh.scripts["a"] += [fault]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await mesh.call()
        mesh.assert_balanced()
        assert mesh.target("a").circuit.state is State.CLOSED
        assert (await mesh.call()).status == 200


async def test_cancelled_before_the_first_word_it_leaves_nothing_behind() -> None:
    async with world() as mesh:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await mesh.call()
        mesh.assert_balanced()


async def test_cancelled_in_the_moment_in_which_the_guard_moves_it_on_it_is_cancelled() -> None:
    async with world("a", "b", ticking=False) as mesh:
        mesh.scripts["a"].append(hangs())
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(_as_coroutine(mesh.call()))
            await asyncio.sleep(1.0)
            (waiting,) = mesh.target("a").waiting
            waiting.move_on("a test says so")
            task.cancel()
        assert task.cancelled()
        assert mesh.asked == ["a"]
        mesh.assert_balanced()


async def test_what_is_wrong_with_the_request_itself_passes_through() -> None:
    async def refuses_the_request(request: Any, progress: Any) -> Any:
        raise ValueError("no such option")

    async with world("a", "b", breaker=BreakerPolicy(failure_threshold=1)) as mesh:
        mesh.scripts["a"].append(refuses_the_request)
        with pytest.raises(ValueError, match="no such option"):
            await mesh.call()
        assert mesh.target("a").circuit.is_clean
        mesh.assert_balanced()


# -- changes meanwhile


async def test_an_instance_that_came_meanwhile_is_tried_after_the_pause() -> None:
    async with world("a") as mesh:
        mesh.scripts["a"].append(refuses())
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(_as_coroutine(mesh.call()))
            await asyncio.sleep(0.1)
            mesh.instances("b")
            assert (await call).given == ("b", 2)


async def test_a_departed_instance_gives_its_calls_up_at_their_deadline() -> None:
    async with world("a") as mesh:
        mesh.scripts["a"].append(hangs())
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(_swallowed(mesh.call("POST", own_seconds=1.5)))
            await asyncio.sleep(0.5)
            mesh.publish()
            assert [target.instance.id for target in mesh.directory.used_targets()] == ["a"]
        assert isinstance(call.result(), UpstreamTimeoutError)
        assert now() == pytest.approx(1.5)
        assert list(mesh.directory.used_targets()) == []


async def _swallowed(call: Any) -> UpstreamError | None:
    try:
        await call
    except UpstreamError as error:
        return error
    return None


# -- what goes along


async def test_ids_traces_deadline_and_token_go_along() -> None:
    context = contexts.RequestContext("corr-1", "req-1", deadline=Deadline(5.0))
    async with world("a") as mesh:
        mesh.token = "secret-token"
        with contexts.serving_request(context):
            await mesh.call(headers={"X-Mine": "1"}, inherited=5.0)
        (sent,) = mesh.sent
        assert sent == {
            "X-Mine": "1",
            "X-Correlation-ID": "corr-1",
            "X-Request-ID": "req-1",
            "X-Toska-Timeout-Ms": "5000",
            "Authorization": "Bearer secret-token",
        }


async def test_each_try_tells_how_long_it_is_waited_for() -> None:
    async with world("a", "b", ticking=False) as mesh:
        mesh.scripts["a"].append(hangs())
        await mesh.call(patience=Patience(2.0, 3.0, RetryPolicy()))
        assert [sent["X-Toska-Timeout-Ms"] for sent in mesh.sent] == ["2000", "1000"]


async def test_a_caller_s_own_authorization_stays() -> None:
    async with world("a") as mesh:
        mesh.token = "secret-token"
        await mesh.call(headers={"authorization": "Basic abc"})
        assert mesh.sent[0]["authorization"] == "Basic abc"
        assert "Authorization" not in mesh.sent[0]


async def test_a_thousand_mixed_calls_leave_the_books_balanced() -> None:
    steps: list[Step] = [answers(), answers(503), resets(), refuses(), answers(after=0.01), hangs()]
    async with world("a", "b", "c", breaker=BreakerPolicy(5, 0.5)) as mesh:
        for number in range(300):
            for id in "abc":
                mesh.scripts[id].append(steps[(number * 7 + ord(id)) % len(steps)])
        async with asyncio.TaskGroup() as tasks:
            for number in range(1000):
                method = "GET" if number % 3 else "POST"
                tasks.create_task(_swallowed(mesh.call(method, own_seconds=2.0, idempotent=None)))
                if number % 50 == 0:
                    await asyncio.sleep(0.05)
        mesh.assert_balanced()
        assert len(mesh.outcomes) == 1000


async def test_an_error_says_that_the_table_is_only_the_last_known_state() -> None:
    async with world("a", breaker=BreakerPolicy(failure_threshold=1, open_seconds=60.0), ticking=False) as mesh:
        mesh.publish(instance("a", status=HealthStatus.UNHEALTHY))
        with pytest.raises(NoInstanceError) as told:
            await mesh.call()
        assert "last known" not in str(told.value)
        mesh.lose_the_registry("discovery at localhost:8080 does not answer")
        await asyncio.sleep(7.0)
        words = "only the last known state, 7 s old: discovery at localhost:8080 does not answer$"
        with pytest.raises(NoInstanceError, match=words):
            await mesh.call()
        with pytest.raises(NoInstanceError, match=words):
            await mesh.directory.find(ServiceName("nobody"), 90.0)
        mesh.publish(instance("a"))
        mesh.lose_the_registry("discovery at localhost:8080 does not answer")
        mesh.scripts["a"] = [resets()]
        with pytest.raises((UpstreamConnectError, CircuitOpenError)):
            await mesh.call()
        with pytest.raises(CircuitOpenError, match="only the last known state"):
            await mesh.call()


@pytest.mark.parametrize(("is_open_ended", "samples"), [(False, 1), (True, 0)])
async def test_how_soon_a_stream_is_open_says_nothing_about_the_service(is_open_ended: bool, samples: int) -> None:
    async with world("a") as mesh:
        request = Request("gRPC", "/shop/Watch", {}, NOTHING, False, {}, is_open_ended=is_open_ended)
        patience = Patience(30.0, 90.0, RetryPolicy())
        await Call(mesh.sender, ORDERS, request, None).run(lambda service: patience, 90.0)
        assert mesh.target("a").latency.samples == samples
