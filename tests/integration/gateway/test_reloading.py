"""Certificates, authorities and keys that are replaced while the gateway runs."""

import asyncio
import contextlib
import errno
import json
import os
import re
import shutil
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from prometheus_client import CollectorRegistry, generate_latest
from tests.integration.gateway.daemons import Gateway as Daemon
from tests.integration.gateway.daemons import hello, start
from tests.integration.gateway.harness import (
    REQUEST,
    Backend,
    Client,
    Gateway,
    TruncatedError,
    instance,
    running_gateway,
    settings_from,
)
from tests.support.servers import http_get
from tests.support.wait import eventually

from toska_mesh.admin import Health
from toska_mesh.gateway import app
from toska_mesh.gateway.auth import TokenChecker, static_keys
from toska_mesh.gateway.reloading import FileWatch, fingerprint

__all__ = ["hello", "start"]

REFUSED = (TruncatedError, ConnectionError, ssl.SSLError)


class Secret:
    """Certificate and key of the listener, as files that are replaced in several ways."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.authority = trustme.CA()
        self.cert, self.key, self.ca = folder / "tls.crt", folder / "tls.key", folder / "ca.crt"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.leaf = self.issue()
        self.write(self.leaf)

    def issue(self, **options: Any) -> trustme.LeafCert:
        return self.authority.issue_cert("127.0.0.1", **options)

    def write(self, leaf: trustme.LeafCert) -> None:
        self.cert.write_bytes(pem_of(leaf))
        self.key.write_bytes(leaf.private_key_pem.bytes())

    @property
    def variables(self) -> dict[str, object]:
        return {"GATEWAY_TLS_CERT": self.cert, "GATEWAY_TLS_KEY": self.key}

    def client(self, identity: trustme.LeafCert | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if identity is not None:
            identity.configure_cert(context)
        return context


def pem_of(leaf: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in leaf.cert_chain_pems)


def serial_of(leaf: trustme.LeafCert) -> int:
    return x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).serial_number


def shown_to(client: Client) -> int:
    """The serial number of the certificate that a client was shown."""
    der = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(der).serial_number


@pytest.fixture
def secret(tmp_path: Path) -> Secret:
    return Secret(tmp_path / "secret")


class Watched:
    """A running gateway whose files are looked at when the test says so."""

    def __init__(self, gateway: Gateway, health: Health, watch: FileWatch, groups: list[Any]) -> None:
        self.gateway = gateway
        self.health = health
        self._watch = watch
        self._groups = groups

    async def look(self) -> None:
        for group in self._groups:
            await self._watch.look(group)

    def check(self, name: str = "listener-certificate") -> tuple[str, str]:
        """State and description in `/health/ready`."""
        report = self.health.ready()
        assert report.status == 200, "the old files serve: ready all the same"
        (found,) = [check for check in report.body["checks"] if check["name"] == name]  # type: ignore[attr-defined]
        return found["status"], found["description"] or ""

    def metrics(self) -> dict[str, float]:
        registry = CollectorRegistry()
        registry.register(self._watch)
        lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    async def shown(self, tls: ssl.SSLContext) -> int:
        """What a new client is shown, after a request that was answered."""
        client = await self.gateway.connect(tls)
        assert (await client.ask(REQUEST)).body == b"ok"
        serial = shown_to(client)
        client.close()
        return serial


@contextlib.asynccontextmanager
async def watched(*backends: Backend, now: float | None = None, **variables: object) -> AsyncIterator[Watched]:
    """A gateway and a watch over its files; `now` is what the watch takes for the time of day."""
    async with running_gateway(*backends, **variables) as gateway:
        health = Health()
        paths = app._paths(gateway.settings)
        before = {group: fingerprint(group) for group in paths}
        groups = app._watched_files(gateway.settings, before, gateway.listener, gateway.proxy, gateway.proxy._tokens)
        clock = (lambda: now) if now is not None else (lambda: datetime.now(UTC).timestamp())
        yield Watched(gateway, health, FileWatch(groups, health, clock), groups)


async def test_a_new_certificate_is_shown_to_new_clients_and_drops_nobody(secret: Secret) -> None:
    async with Backend() as backend, watched(backend, **secret.variables) as running:
        tls = secret.client()
        stop = asyncio.Event()
        seen: Counter[str] = Counter()

        async def ask_again_and_again() -> None:
            """One connection for the whole time, and a new one for every request."""
            kept = await running.gateway.connect(tls)
            while not stop.is_set():
                for client in (kept, await running.gateway.connect(tls)):
                    seen[str((await client.ask(REQUEST)).status)] += 1
                    if client is not kept:
                        seen[f"serial {shown_to(client)}"] += 1
                        client.close()
            assert shown_to(kept) == serial_of(secret.leaf), "an open connection was replaced"

        serials = [serial_of(secret.leaf)]
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(ask_again_and_again())
            while seen["200"] < 20:
                await asyncio.sleep(0.01)
            for _ in range(3):
                leaf = secret.issue()
                secret.write(leaf)
                await running.look()
                serials.append(serial_of(leaf))
                async with asyncio.timeout(10):
                    while not seen[f"serial {serials[-1]}"]:
                        await asyncio.sleep(0.01)
            stop.set()
        assert {name for name in seen if not name.startswith("serial")} == {"200"}
        assert {f"serial {serial}" for serial in serials} == {name for name in seen if name.startswith("serial")}
        assert running.check()[0] == "Healthy"
        metrics = running.metrics()
        assert metrics['toska_gateway_file_reloads_total{files="listener-certificate",result="ok"}'] == 3
        assert metrics['toska_gateway_file_reloads_total{files="listener-certificate",result="refused"}'] == 0


async def test_files_that_did_not_change_are_left_alone(secret: Secret) -> None:
    async with watched(**secret.variables) as running:
        server = running.gateway.listener._server
        os.utime(secret.cert)
        secret.write(secret.leaf)
        await running.look()
        assert running.gateway.listener._server is server


async def test_what_cannot_be_taken_into_use_is_tried_again_and_told_as_the_old(
    secret: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Backend() as backend, watched(backend, **secret.variables) as running:
        expiry = 'toska_gateway_certificate_expiry_timestamp_seconds{files="listener-certificate"}'
        before = running.metrics()[expiry]
        leaf = secret.issue(not_after=datetime.now(UTC) + timedelta(days=3))
        secret.write(leaf)
        with monkeypatch.context() as patched:
            patched.setattr(running.gateway.listener, "_socket", OutOfDescriptors())
            for _ in range(2):
                with pytest.raises(OSError, match="Too many open files"):
                    await running.look()
        assert await running.shown(secret.client()) == serial_of(secret.leaf)
        assert running.metrics()[expiry] == before, "the old certificate serves, so its expiry counts"
        await running.look()
        assert await running.shown(secret.client()) == serial_of(leaf)
        assert running.metrics()[expiry] < before
        assert running.metrics()['toska_gateway_file_reloads_total{files="listener-certificate",result="ok"}'] == 1


class OutOfDescriptors:
    """What a socket is like when the process may open nothing more."""

    def dup(self) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")


async def test_a_pair_that_is_half_written_is_refused_until_it_fits(secret: Secret) -> None:
    async with Backend() as backend, watched(backend, **secret.variables) as running:
        leaf = secret.issue()
        secret.cert.write_bytes(pem_of(leaf))
        for _ in range(3):
            await running.look()
            assert await running.shown(secret.client()) == serial_of(secret.leaf)
        state, why = running.check()
        assert state == "Degraded"
        assert "GATEWAY_TLS_KEY" in why
        assert "belong together" in why
        assert running.metrics()['toska_gateway_files_refused{files="listener-certificate"}'] == 1
        refused = 'toska_gateway_file_reloads_total{files="listener-certificate",result="refused"}'
        assert running.metrics()[refused] == 1, "one change is one refusal, however often it is looked at"
        secret.key.write_bytes(leaf.private_key_pem.bytes())
        await running.look()
        assert await running.shown(secret.client()) == serial_of(leaf)
        assert running.check()[0] == "Healthy"
        assert running.metrics()['toska_gateway_files_refused{files="listener-certificate"}'] == 0


@pytest.mark.parametrize("trouble", ["cut", "empty", "gone", "encrypted"])
async def test_files_that_are_no_use_leave_the_old_ones_in_use(secret: Secret, trouble: str) -> None:
    async with Backend() as backend, watched(backend, **secret.variables) as running:
        good = secret.cert.read_bytes(), secret.key.read_bytes()
        match trouble:
            case "cut":
                secret.cert.write_bytes(good[0][:200])
            case "empty":
                secret.cert.write_bytes(b"")
            case "gone":
                secret.key.unlink()
            case "encrypted":
                secret.key.write_bytes(encrypted(good[1]))
        await running.look()
        assert running.check()[0] == "Degraded"
        assert await running.shown(secret.client()) == serial_of(secret.leaf)
        secret.cert.write_bytes(good[0])
        secret.key.write_bytes(good[1])
        await running.look()
        assert running.check()[0] == "Healthy", "the files are again those in use"


def encrypted(pem: bytes) -> bytes:
    key = load_pem_private_key(pem, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


async def test_files_may_be_replaced_by_renames_and_by_turned_links(tmp_path: Path, secret: Secret) -> None:
    """Renamed over (certbot), and as Kubernetes does it: `tls.crt` -> `..data/tls.crt`, `..data` -> a dated folder."""
    mount = tmp_path / "mount"
    mount.mkdir()

    def publish(name: str, leaf: trustme.LeafCert) -> None:
        (mount / name).mkdir()
        (mount / name / "tls.crt").write_bytes(pem_of(leaf))
        (mount / name / "tls.key").write_bytes(leaf.private_key_pem.bytes())
        (mount / "..tmp").symlink_to(name)
        (mount / "..tmp").rename(mount / "..data")

    publish("..1", secret.leaf)
    for name in ("tls.crt", "tls.key"):
        (mount / name).symlink_to(f"..data/{name}")
    variables = {"GATEWAY_TLS_CERT": mount / "tls.crt", "GATEWAY_TLS_KEY": mount / "tls.key"}
    async with Backend() as backend, watched(backend, **variables) as running:
        turned = secret.issue()
        publish("..2", turned)
        shutil.rmtree(mount / "..1")
        await running.look()
        assert await running.shown(secret.client()) == serial_of(turned)
    async with Backend() as backend, watched(backend, **secret.variables) as running:
        renamed = secret.issue()
        for path, content in ((secret.cert, pem_of(renamed)), (secret.key, renamed.private_key_pem.bytes())):
            path.with_suffix(".new").write_bytes(content)
            os.utime(path.with_suffix(".new"), (0, 0))  # older than what it replaces
            path.with_suffix(".new").rename(path)
        await running.look()
        assert await running.shown(secret.client()) == serial_of(renamed)


async def test_what_expires_is_told(secret: Secret) -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
    secret.write(secret.issue(not_after=ends))
    for now, state in ((ends.timestamp() - 1, "Healthy"), (ends.timestamp(), "Degraded")):
        async with watched(now=now, **secret.variables) as running:
            assert running.check()[0] == state
            assert ends.isoformat(timespec="seconds") in running.check()[1]
            name = 'toska_gateway_certificate_expiry_timestamp_seconds{files="listener-certificate"}'
            assert running.metrics()[name] == ends.timestamp()


async def test_another_client_authority_locks_its_predecessors_clients_out(tmp_path: Path, secret: Secret) -> None:
    """Sessions from before are no way around it, and open connections go on."""
    other = Secret(tmp_path / "other")
    variables = secret.variables | {"GATEWAY_TLS_CLIENT_CA": secret.ca}
    async with Backend() as backend, watched(backend, **variables) as running:
        before, after = secret.client(secret.issue()), secret.client(other.issue())
        kept = await running.gateway.connect(before)
        assert (await kept.ask(REQUEST)).status == 200
        with pytest.raises(REFUSED):
            await running.shown(after)
        secret.ca.write_bytes(other.ca.read_bytes())
        await running.look()
        assert await running.shown(after) == serial_of(secret.leaf)
        with pytest.raises(REFUSED):
            await running.shown(before)
        assert (await kept.ask(REQUEST)).status == 200


async def test_clients_with_bad_certificates_are_told_why(tmp_path: Path, secret: Secret) -> None:
    stranger = Secret(tmp_path / "stranger")
    now = datetime.now(UTC)
    expired = secret.issue(not_before=now - timedelta(days=9), not_after=now - timedelta(days=1))
    variables = secret.variables | {"GATEWAY_TLS_CLIENT_CA": secret.ca}
    async with Backend() as backend, watched(backend, **variables) as running:
        cases = [(None, "REQUIRED|HANDSHAKE_FAILURE"), (expired, "EXPIRED"), (stranger.issue(), "UNKNOWN_CA")]
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            for identity, alert in cases:
                tls = secret.client(identity)
                tls.minimum_version = tls.maximum_version = version
                with pytest.raises(ssl.SSLError, match=alert):
                    await (await running.gateway.connect(tls)).ask(REQUEST)
        assert await running.shown(secret.client(secret.issue())) == serial_of(secret.leaf)
        assert running.gateway.listener.tls_failures == {"client-certificate": 6}
        assert not backend.truncated
        assert len(backend.requests) == 1


async def test_protocol_versions_and_alpn(secret: Secret) -> None:
    async with Backend() as backend, watched(backend, **secret.variables) as running:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            tls = secret.client()
            tls.minimum_version = tls.maximum_version = version
            tls.set_alpn_protocols(["h2", "http/1.1"])
            client = await running.gateway.connect(tls)
            assert (await client.ask(REQUEST)).status == 200
            shown = client.writer.get_extra_info("ssl_object")
            assert shown.selected_alpn_protocol() == "http/1.1"
            assert shown.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
            client.close()
        old = secret.client()
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            await running.gateway.connect(old)
        assert running.gateway.listener.tls_failures == {"protocol": 1}


async def test_sessions_are_resumed_and_after_a_reload_made_anew(secret: Secret) -> None:
    async with Backend() as backend, watched(backend, **secret.variables) as running:
        tls = secret.client()

        def talk(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
            with (
                socket.create_connection(("127.0.0.1", running.gateway.port)) as raw,
                tls.wrap_socket(raw, server_hostname="127.0.0.1", session=session) as client,
            ):
                client.sendall(REQUEST)
                assert client.recv(65536).startswith(b"HTTP/1.1 200")
                return client.session, bool(client.session_reused)

        session, was_resumed = await asyncio.to_thread(talk, None)
        assert not was_resumed
        session, was_resumed = await asyncio.to_thread(talk, session)
        assert was_resumed
        secret.write(secret.issue())
        await running.look()
        session, was_resumed = await asyncio.to_thread(talk, session)
        assert not was_resumed
        assert (await asyncio.to_thread(talk, session))[1]


async def test_another_authority_of_instances(tmp_path: Path, secret: Secret) -> None:
    other = Secret(tmp_path / "other")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other.leaf.configure_cert(server)
    async with (
        Backend(tls=server) as backend,
        watched(
            GATEWAY_UPSTREAM_CA_FILE=secret.ca, GATEWAY_RETRY_COUNT=0, GATEWAY_BREAKER_FAILURE_THRESHOLD=99
        ) as running,
    ):
        running.gateway.route({"orders": [instance("orders", 0, backend, scheme="https")]})
        assert (await running.gateway.get()).status == 502
        secret.ca.write_bytes(b"no certificate")
        await running.look()
        assert running.check("upstream-ca")[0] == "Degraded"
        secret.ca.write_bytes(other.ca.read_bytes())
        await running.look()
        assert running.check("upstream-ca")[0] == "Healthy"
        assert (await running.gateway.get()).status == 200


async def test_another_key_for_tokens(tmp_path: Path) -> None:
    """Tokens of the old key are refused from then on, those that were checked before too."""
    path = tmp_path / "key.pem"
    keys = [Ed25519PrivateKey.generate() for _ in range(2)]

    def publish(key: Ed25519PrivateKey) -> None:
        path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def token(key: Ed25519PrivateKey) -> str:
        return "Authorization: Bearer " + jwt.encode({"exp": 2**40, "iss": "i", "aud": "a"}, key, "EdDSA") + "\r\n"

    publish(keys[0])
    checker = TokenChecker("i", "a", static_keys(settings_from(JWT_PUBLIC_KEY_FILE=path)), lambda: 0.0)
    async with (
        Backend() as backend,
        watched(backend, options=lambda _: {"tokens": checker}, JWT_PUBLIC_KEY_FILE=path) as running,
    ):
        assert [(await running.gateway.get(headers=token(key))).status for key in keys] == [200, 401]
        publish(keys[1])
        await running.look()
        assert [(await running.gateway.get(headers=token(key))).status for key in keys] == [401, 200]


async def test_every_worker_reloads_and_the_supervisor_tells(start: Callable[..., Daemon], secret: Secret) -> None:
    daemon = await asyncio.to_thread(start, **{name: str(value) for name, value in secret.variables.items()})
    await eventually(lambda: len(daemon.serving()) == 2, 20)
    tls = secret.client()

    async def shown() -> set[int]:
        """To twenty new clients: both workers have had some, or it is asked again."""
        serials = set()
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port, ssl=tls)
            writer.write(b"GET /api/hello/x HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            serials.add(shown_to(Client(reader, writer)))
            writer.close()
        return serials

    def told() -> tuple[int, str, str]:
        status, body = http_get(f"http://127.0.0.1:{daemon.admin_port}/health/ready")
        report = json.loads(body)
        (check,) = [check for check in report["checks"] if check["name"] == "listener-certificate"]
        return status, report["status"], check["description"] or ""

    def metric(name: str) -> float:
        page = http_get(f"http://127.0.0.1:{daemon.admin_port}/metrics")[1].decode()
        (value,) = re.findall(rf"(?m)^{re.escape(name)} (.*)$", page)
        return float(value)

    assert await shown() == {serial_of(secret.leaf)}
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
    leaf = secret.issue(not_after=ends)
    secret.cert.write_bytes(pem_of(leaf))
    await eventually(lambda: told()[:2] == (200, "Degraded"), 20)
    assert "worker" in told()[2]
    assert "belong together" in told()[2]
    await eventually(lambda: metric('toska_gateway_files_refused{files="listener-certificate"}') == 1, 20)
    assert await shown() == {serial_of(secret.leaf)}
    secret.key.write_bytes(leaf.private_key_pem.bytes())
    reloads = 'toska_gateway_file_reloads_total{files="listener-certificate",result="ok"}'
    await eventually(lambda: metric(reloads) == 2, 20)
    assert await shown() == {serial_of(leaf)}
    assert (
        metric('toska_gateway_certificate_expiry_timestamp_seconds{files="listener-certificate"}') == ends.timestamp()
    )
    await eventually(lambda: told()[:2] == (200, "Healthy"), 20)
    await asyncio.to_thread(daemon.daemon.assert_clean_exit)
