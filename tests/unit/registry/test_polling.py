"""The rules of blocking queries, and pauses between failed tries."""

import asyncio
import random
from collections.abc import Mapping, Sequence

import pytest

from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.registry.consul.client import Answer, ThrottledError
from toska_mesh.registry.consul.polling import Backoff, BlockingQuery


class Script:
    """Answers one index (or error) after the other and remembers what was asked."""

    def __init__(self, answers: Sequence[int | Exception | None]) -> None:
        self._answers = list(answers)
        self.asked: list[dict[str, str]] = []
        self.limits: list[float | None] = []

    async def call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] = {},
        body: bytes | None = None,
        deadline: float | None = None,
        limit_seconds: float | None = None,
        missing_ok: bool = False,
    ) -> Answer:
        self.asked.append(dict(params))
        self.limits.append(limit_seconds)
        await asyncio.sleep(0.001)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Answer(200, b"[]", answer)


async def indexes_asked(answers: Sequence[int | Exception | None]) -> tuple[list[str | None], list[bool], list[bool]]:
    script = Script(answers)
    query = BlockingQuery(script, "/v1/x", wait_seconds=120)
    new, back = [], []
    for _ in answers:
        try:
            poll = await query.next()
        except RegistryError:
            continue
        new.append(poll.is_new)
        back.append(poll.went_back)
    return [params.get("index") for params in script.asked], new, back


@pytest.mark.parametrize(
    ("answers", "asked", "new", "back"),
    [
        pytest.param([7, 7, 9], [None, "7", "7"], [True, False, True], [False] * 3, id="waits on the last index"),
        pytest.param([7, 3, 3, 4], [None, "7", None, "3"], [True] * 4, [False, True, False, False], id="goes back"),
        pytest.param([0, 0, 5], [None, "1", "1"], [True, True, True], [False] * 3, id="never waits on 0"),
        pytest.param(
            [7, RegistryUnavailableError("x"), 7, 8],
            [None, "7", None, "7"],
            [True] * 3,
            [False] * 3,
            id="after an error",
        ),
        pytest.param(
            [7, RegistryUnavailableError("x"), 2, 3],
            [None, "7", None, None],
            [True] * 3,
            [False, True, False],
            id="back after an error",
        ),
        pytest.param([7, None, 7], [None, "7", None], [True, True], [False] * 2, id="no index is no answer"),
    ],
)
async def test_index_rules(
    answers: list[int | Exception | None], asked: list[str | None], new: list[bool], back: list[bool]
) -> None:
    assert await indexes_asked(answers) == (asked, new, back)


async def test_the_client_waits_longer_than_the_server_may() -> None:
    script = Script([7, 8])
    query = BlockingQuery(script, "/v1/x", wait_seconds=160, slack_seconds=5)
    await query.next()
    await query.next()
    assert script.limits == [5, 160 + 10 + 5]
    assert script.asked[1]["wait"] == "160s"


async def test_cut_short_fails_only_a_wait_that_began_before() -> None:
    class Silent(Script):
        async def call(self, *args: object, **kwargs: object) -> Answer:  # type: ignore[override]
            await asyncio.Event().wait()
            raise AssertionError

    query = BlockingQuery(Silent([]), "/v1/x")
    await asyncio.sleep(10)
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(_outcome(query))
        await asyncio.sleep(1)
        query.cut_short(asked_before=10)
        await asyncio.sleep(1)
        assert not asking.done()
        query.cut_short(asked_before=10.5)
    assert asking.result() == "unavailable"
    query.cut_short(asked_before=1000)  # nothing is asked: nothing happens


async def _outcome(query: BlockingQuery) -> str:
    try:
        await query.next()
    except RegistryUnavailableError:
        return "unavailable"
    return "answered"


def test_pauses_grow_jittered_to_a_bound_and_start_over_after_success() -> None:
    backoff = Backoff(random.Random(3), base_seconds=0.2, longest_seconds=3)
    for ceiling in (0.2, 0.4, 0.8, 1.6, 3, 3, 3):
        assert ceiling / 2 <= backoff.failed(RegistryUnavailableError()) <= ceiling
    backoff.succeeded()
    assert backoff.failed(RegistryUnavailableError()) <= 0.2


def test_a_refusal_waits_the_longest_at_once() -> None:
    assert Backoff(random.Random(3), longest_seconds=3).failed(RegistryError("403")) >= 1.5


def test_retry_after_is_obeyed() -> None:
    assert Backoff(random.Random(3)).failed(ThrottledError("429", 17)) >= 17
