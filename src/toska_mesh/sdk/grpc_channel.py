"""A gRPC channel over the mesh: each call goes to an instance that the router picks, over that instance's connection.

grpc.aio has no name resolution of our own making, and a target with several addresses would hide who was asked. So
there is one channel per instance and the choice is made per call, by the same `calls.Call` as over HTTP. What differs:

- Whatever status a server answers is an answer, but UNAVAILABLE, which is a failed try. A try that failed before there
  was a connection goes elsewhere; after that only a call that is said to be idempotent does, because gRPC methods do
  not say so themselves.
- A streamed answer may be silent for hours, so it counts as begun when its connection is there. So a stream is repeated
  only where there was none.
- Errors are gRPC's own (AioRpcError), as users of generated stubs expect them; the mesh's is the cause.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import grpc
import grpc.aio

from toska_mesh.errors import UpstreamError, UpstreamTimeoutError
from toska_mesh.guard import PROBE_SECONDS, ContainedTasks, Guarded
from toska_mesh.model import Endpoint, Instance, ServiceName
from toska_mesh.model.metadata import GRPC_PORT, SCHEME
from toska_mesh.resilience import BreakerPolicy, Failure, Outcome, RecentLatency
from toska_mesh.sdk import context as contexts
from toska_mesh.sdk.bodies import NOTHING
from toska_mesh.sdk.calls import Call, Sender
from toska_mesh.sdk.client import DEFAULT, CallOptions, Limits
from toska_mesh.sdk.transport import CONNECT_SECONDS, Progress, Request, TryFailedError

GRPC_SCHEMES: Final = ("grpc", "grpcs")
GRACE_SECONDS: Final = 60.0
"""How long calls may go on at an instance that has left."""

_CHANNEL_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # The guard decides when an instance is asked again; a channel must not add its own minutes to that.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.enable_retries", 0),
)
_HEALTH_CHECK: Final = "/grpc.health.v1.Health/Check"

_TIMEOUT_MS: Final = contexts.TIMEOUT_MS.lower()
_LONGEST_PORT: Final = 5
"""Digits."""
_SLACK_SECONDS: Final = 0.1

_Start = Callable[[grpc.aio.Channel, Mapping[str, str], float | None], Any]
"""Begin a call over a channel, with these metadata besides the caller's own, for so many seconds at most."""


class GrpcRemote(Guarded):
    """One instance with its channel, which is made when it is first needed."""

    __slots__ = ("_channel", "_credentials", "endpoint")

    def __init__(
        self,
        instance: Instance,
        policy: BreakerPolicy,
        latency: RecentLatency,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        super().__init__(instance, policy, latency)
        self.endpoint = grpc_endpoint(instance)
        scheme = instance.metadata.get(SCHEME, "").strip().lower()
        is_tls = scheme in ("grpcs", "https")
        self._credentials = (credentials or grpc.ssl_channel_credentials()) if is_tls else None
        self._channel: grpc.aio.Channel | None = None

    @property
    def channel(self) -> grpc.aio.Channel:
        """Open as long as the instance is there."""
        if self._channel is None:
            target = f"dns:///{self.endpoint.authority}"
            if self._credentials is not None:
                self._channel = grpc.aio.secure_channel(target, self._credentials, options=_CHANNEL_OPTIONS)
            else:
                self._channel = grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
        return self._channel

    async def close(self, grace_seconds: float | None = None) -> None:
        """Let calls go on for so long, then end them."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(grace_seconds)


def grpc_endpoint(instance: Instance) -> Endpoint:
    """Where an instance speaks gRPC: at its own port, or at `grpc_port` where its metadata has one."""
    text = instance.metadata.get(GRPC_PORT, "").strip()
    if text.isascii() and text.isdigit() and len(text) <= _LONGEST_PORT and 0 < int(text) < 65536:
        return Endpoint(instance.endpoint.host, int(text))
    return instance.endpoint


class GrpcProber:
    """`Prober` over gRPC: whether anything answers the health check, be it that there is none."""

    async def probe(self, target: Guarded) -> bool:
        """See `Prober`."""
        if not isinstance(target, GrpcRemote):
            return False
        check: Any = target.channel.unary_unary(_HEALTH_CHECK, None, None)
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await check(b"", wait_for_ready=True)
        except TimeoutError:
            return False
        except grpc.aio.AioRpcError as error:
            return error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return True


class RpcReply:
    """What came of one call: a message, a stream that goes on, or the server's own error."""

    status = 200

    def __init__(self, call: Any, message: Any = None, error: grpc.aio.AioRpcError | None = None) -> None:
        self.call = call
        self.message = message
        self.error = error
        self.is_stream = False
        self.instance: Instance | None = None
        self.attempts = 0
        self._report: Callable[[Outcome], None] | None = None

    def _mesh_belongs_to(self, instance: Instance, attempts: int, deadline: float) -> None:
        self.instance = instance
        self.attempts = attempts

    def _mesh_on_over(self, report: Callable[[Outcome], None]) -> None:
        if self.is_stream:
            self._report = report
            self.call.add_done_callback(self._over)
        else:
            report(Outcome.SUCCESS)

    def _over(self, call: Any) -> None:
        report, self._report = self._report, None
        if report is not None:
            report(_outcome(call))

    def _mesh_drop(self) -> None:
        self.call.cancel()


def _outcome(call: Any) -> Outcome:
    if call.cancelled():
        return Outcome.CANCELLED
    # The code of a call that is done is known; the method is a coroutine all the same, and has no await in it then.
    asking = call.code()
    try:
        asking.send(None)
    except StopIteration as known:
        return Outcome.FAILURE if known.value is grpc.StatusCode.UNAVAILABLE else Outcome.SUCCESS
    finally:
        asking.close()
    return Outcome.CANCELLED


class GrpcTransport:
    """`Transport` over the instances' channels. `tasks` runs the closing of those that leave."""

    def __init__(self, tasks: ContainedTasks) -> None:
        self._tasks = tasks

    def leave(self, target: Guarded) -> None:
        """The instance is no longer in the table: its calls may finish."""
        if isinstance(target, GrpcRemote):
            self._tasks.create_task(target.close(GRACE_SECONDS), name=f"close channel to {target.instance.id}")

    async def send(
        self, request: Request, target: GrpcRemote, headers: Mapping[str, str], progress: Progress
    ) -> RpcReply:
        """See `Transport`."""
        channel = target.channel
        await _connect(channel)
        progress.connected()
        start: _Start = request.options["start"]
        fields = {name.lower(): value for name, value in headers.items()}
        if request.is_open_ended:
            fields.pop(_TIMEOUT_MS, None)  # that is how long we wait for its beginning; its end is its caller's affair
            reply = RpcReply(start(channel, fields, None))
            reply.is_stream = True
            return reply
        milliseconds = fields.get(_TIMEOUT_MS)
        # The try's own end comes first, so that it is known for what it is.
        seconds = int(milliseconds) / 1000 + _SLACK_SECONDS if milliseconds is not None else None
        call = start(channel, fields, seconds)
        try:
            return RpcReply(call, await call)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise TryFailedError(Failure.RESET, error.details() or "it said UNAVAILABLE") from error
            return RpcReply(call, error=error)


async def _connect(channel: grpc.aio.Channel) -> None:
    """Wait until there is a connection. Raises TryFailedError: then nothing was sent."""
    state = channel.get_state(try_to_connect=True)
    if state is grpc.ChannelConnectivity.READY:
        return
    patience = asyncio.timeout(CONNECT_SECONDS)
    try:
        async with patience:
            while state is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    raise TryFailedError(Failure.CONNECT, "cannot connect")
                if state is grpc.ChannelConnectivity.SHUTDOWN:
                    raise TryFailedError(Failure.CONNECT, "the channel is closed: the instance has left")
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError:
        if patience.expired():
            raise TryFailedError(Failure.CONNECT, "no connection in time") from None
        raise


class _Method:
    """One method of the service, called as generated stubs call it."""

    def __init__(self, channel: "MeshChannel", kind: str, path: str, serializer: Any, deserializer: Any) -> None:
        self._channel = channel
        self._kind = kind
        self._path = path
        self._arguments = (path, serializer, deserializer)

    def __call__(
        self,
        request: Any = None,
        timeout: float | None = DEFAULT,
        metadata: Sequence[tuple[str, Any]] | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        loop = asyncio.get_running_loop()
        ends = float("inf") if timeout is DEFAULT or timeout is None else loop.time() + timeout
        streams = self._kind.endswith("stream")

        def start(channel: grpc.aio.Channel, fields: Mapping[str, str], seconds: float | None) -> Any:
            method = getattr(channel, self._kind)(*self._arguments)
            if seconds is None and ends != float("inf"):
                seconds = max(0.0, ends - loop.time())
            return method(
                request,
                timeout=seconds,
                metadata=(*(metadata or ()), *fields.items()),
                credentials=credentials,
                compression=compression,
            )

        is_once = self._kind.startswith("stream")
        call = self._channel.call(self._path, start, timeout, is_once=is_once, streams=streams)
        return _StreamCall(call) if streams else _UnaryCall(call)


class _UnaryCall:
    """The call of a stub, in as many tries as it takes: await it for the message."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self._reply: RpcReply | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._message().__await__()

    async def _message(self) -> Any:
        if self._reply is None:
            self._reply = await self._answer
        if self._reply.error is not None:
            raise self._reply.error
        return self._reply.message

    async def _call(self) -> Any:
        with suppress(grpc.aio.AioRpcError):
            await self._message()
        if self._reply is None:
            raise grpc.aio.UsageError("the call got no answer from any instance")
        return self._reply.call

    async def initial_metadata(self) -> Any:
        """Of the try that was answered; waits for it."""
        return await (await self._call()).initial_metadata()

    async def trailing_metadata(self) -> Any:
        """Of the try that was answered; waits for it."""
        return await (await self._call()).trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        """Of the try that was answered; waits for it."""
        code: grpc.StatusCode = await (await self._call()).code()
        return code

    async def details(self) -> str:
        """Of the try that was answered; waits for it."""
        return str(await (await self._call()).details())

    @property
    def mesh_instance(self) -> Instance | None:
        """Who answered, once somebody has."""
        return self._reply.instance if self._reply is not None else None

    @property
    def attempts(self) -> int:
        """In which try; 0 before there is an answer."""
        return self._reply.attempts if self._reply is not None else 0


class _StreamCall:
    """The streaming call of a stub: iterate over it, or `read` it message by message."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self._reply: RpcReply | None = None

    async def _call(self) -> Any:
        if self._reply is None:
            self._reply = await self._answer
        return self._reply.call

    async def __aiter__(self) -> AsyncIterator[Any]:
        call = await self._call()
        try:
            async for message in call:
                yield message
        finally:
            call.cancel()  # whoever stops listening lets the server know

    async def read(self) -> Any:
        """The next message; `grpc.aio.EOF` at the end."""
        return await (await self._call()).read()

    async def trailing_metadata(self) -> Any:
        """After the end of the stream."""
        return await (await self._call()).trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        """After the end of the stream."""
        code: grpc.StatusCode = await (await self._call()).code()
        return code

    def cancel(self) -> None:
        """End the stream."""
        if self._reply is not None:
            self._reply.call.cancel()
        else:
            self._answer.close()

    @property
    def mesh_instance(self) -> Instance | None:
        """Who answers, once it is known."""
        return self._reply.instance if self._reply is not None else None


class MeshChannel(grpc.aio.Channel):
    """A channel for generated stubs: `OrdersStub(mesh.grpc_channel("orders"))`. Closing it closes nothing: the
    connections are the mesh's. Streaming calls take their requests as an iterator.

    `idempotent`: whether calls may be carried out twice: all of them, none, or methods by name
    (`/shop.Orders/Get` or `Get`).
    """

    def __init__(
        self,
        sender: Sender[RpcReply],
        service: ServiceName,
        options: CallOptions,
        *,
        key: str | None = None,
        idempotent: bool | Collection[str] = False,
    ) -> None:
        self._sender = sender
        self._service = service
        self._limits = Limits(options)
        self._key = key
        self._idempotent = idempotent

    async def call(self, path: str, start: _Start, timeout: float | None, *, is_once: bool, streams: bool) -> RpcReply:
        """One call of a method, for the multi-callables. Raises AioRpcError."""
        is_safe = not is_once and self._is_idempotent(path)
        request = Request("gRPC", path, {}, NOTHING, is_safe, {"start": start}, is_open_ended=streams)
        call = Call(self._sender, self._service, request, self._key)
        try:
            return await call.run(*self._limits.overridden(timeout, DEFAULT, DEFAULT))
        except UpstreamError as error:
            is_late = isinstance(error, UpstreamTimeoutError)
            code = grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.UNAVAILABLE
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(code, nothing, nothing, details=str(error), debug_error_string="") from error

    def _is_idempotent(self, path: str) -> bool:
        if isinstance(self._idempotent, bool):
            return self._idempotent
        return path in self._idempotent or path.rpartition("/")[2] in self._idempotent

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        return _Method(self, "unary_unary", method, request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        return _Method(self, "unary_stream", method, request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        return _Method(self, "stream_unary", method, request_serializer, response_deserializer)

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        return _Method(self, "stream_stream", method, request_serializer, response_deserializer)

    async def __aenter__(self) -> "MeshChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def close(self, grace: float | None = None) -> None:
        """Nothing of it is its own."""

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """READY: whether anybody is there shows in the call."""
        return grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Returns when the state is another one than that; it is READY all the time."""
        if last_observed_state is grpc.ChannelConnectivity.READY:
            await asyncio.Event().wait()

    async def channel_ready(self) -> None:
        """At once."""
