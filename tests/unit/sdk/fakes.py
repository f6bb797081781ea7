"""The other side of a membership, answering from scripts on the virtual clock."""

import asyncio
from dataclasses import dataclass

from toska_mesh.errors import RegistryUnavailableError
from toska_mesh.model import HealthStatus, InstanceId, ServiceName
from toska_mesh.sdk.enrolment import Applied, Member

MEMBER = Member(
    ServiceName("orders"), InstanceId("orders-1"), "127.0.0.1", 4000, {"scheme": "http"}, interval_seconds=10
)
"""TTL 15 s, a beat every 5 s."""


def away(words: str = "nobody listens") -> RegistryUnavailableError:
    return RegistryUnavailableError(words)


@dataclass(frozen=True, slots=True)
class After:
    """An answer that takes its time."""

    seconds: float
    answer: object


SILENCE = object()
"""No answer until the caller's deadline."""


class ScriptedEnrolment:
    """Answers from scripts, one entry per call; the last one repeats. Remembers who asked what and when."""

    def __init__(
        self,
        register: list[object] | None = None,
        report: list[object] | None = None,
        deregister: list[object] | None = None,
        wait_applied: list[object] | None = None,
    ) -> None:
        self._scripts = {
            "register": register or [None],
            "report": report or [True],
            "deregister": deregister or [True],
            "wait_applied": wait_applied or [Applied(True, gateways=("gateway-1",))],
        }
        self.calls: list[tuple[float, str]] = []
        self.said: list[tuple[HealthStatus, str]] = []
        self.in_call = 0

    async def register(self, member: Member, deadline: float) -> InstanceId:
        await self._answer("register", deadline)
        return member.id

    async def report(self, instance_id: InstanceId, status: HealthStatus, output: str, deadline: float) -> bool:
        self.said.append((status, output))
        return bool(await self._answer("report", deadline))

    async def deregister(self, instance_id: InstanceId, deadline: float) -> bool:
        return bool(await self._answer("deregister", deadline))

    async def wait_applied(self, service: ServiceName, deadline: float) -> Applied:
        answer = await self._answer("wait_applied", deadline)
        assert isinstance(answer, Applied)
        return answer

    def script(self, method: str, answers: list[object]) -> None:
        """From now on."""
        self._scripts[method] = answers

    def times(self, method: str) -> list[float]:
        return [at for at, name in self.calls if name == method]

    @property
    def order(self) -> list[str]:
        return [name for _, name in self.calls]

    async def _answer(self, method: str, deadline: float) -> object:
        loop = asyncio.get_running_loop()
        self.calls.append((loop.time(), method))
        script = self._scripts[method]
        answer = script.pop(0) if len(script) > 1 else script[0]
        assert deadline > loop.time(), "a call without time"
        assert self.in_call == 0 or method != "register", "a registration while another call is under way"
        self.in_call += 1
        try:
            if isinstance(answer, After):
                await asyncio.sleep(answer.seconds)
                answer = answer.answer
            if answer is SILENCE:
                await asyncio.sleep(deadline - loop.time())
                raise away("no answer in time")
            await asyncio.sleep(0)
            if isinstance(answer, BaseException):
                raise answer
            return answer
        finally:
            self.in_call -= 1
