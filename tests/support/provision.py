"""Where the real servers of the tests come from. `python -m tests.support.provision` fetches them and says which.

Per server, the first that works: a binary named by a variable (CONSUL_BIN, RABBITMQ_SERVER_BIN, REDIS_BIN) or found on
the PATH; Docker, if an engine answers; Debian packages (Consul and Redis unpacked into a cache folder, without root and
without touching the system; RabbitMQ installed by apt when we are root). When nothing works, `ProvisionError` says what
was tried and what to install. There is no skipping.
"""

import fcntl
import functools
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import debian
from tests.support.shell import NotHereError, run

CONSUL_IMAGE = os.environ.get("CONSUL_IMAGE", "hashicorp/consul:1.20")
RABBITMQ_IMAGE = os.environ.get("RABBITMQ_IMAGE", "rabbitmq:3.13")
REDIS_IMAGE = os.environ.get("REDIS_IMAGE", "redis:7.2")

CONSUL_SUITE = "bullseye"
"""The last Debian release that carries Consul (1.8.7)."""

_REDIS_PACKAGES = ("redis-tools", "redis-server", "liblzf1", "libjemalloc2", "libatomic1")
"""The server and what of its libraries a small machine may lack."""

_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/usr/lib/rabbitmq/bin")


class ProvisionError(RuntimeError):
    """No way to a server; the message is for the person at the keyboard."""


@dataclass(frozen=True, slots=True)
class Binary:
    """A program on this machine, or for RabbitMQ an image that Docker runs."""

    path: Path
    version: tuple[int, ...] = ()
    origin: str = ""
    image: str = ""

    def __str__(self) -> str:
        version = ".".join(map(str, self.version))
        return f"{self.image or self.path} {version} ({self.origin})".replace("  ", " ")


@functools.cache
def consul() -> Binary:
    """A runnable Consul."""
    return _first(
        "Consul",
        "CONSUL_BIN",
        (_consul_on_path, _consul_cached, _consul_from_docker, _consul_from_debian),
    )


@functools.cache
def rabbitmq() -> Binary:
    """A runnable RabbitMQ server."""
    return _first(
        "RabbitMQ",
        "RABBITMQ_SERVER_BIN",
        (_rabbitmq_on_path, _rabbitmq_from_docker, _rabbitmq_from_apt),
    )


@functools.cache
def redis() -> Binary:
    """A runnable Redis server."""
    return _first(
        "Redis",
        "REDIS_BIN",
        (_redis_on_path, _redis_cached, _redis_from_docker, _redis_from_debian),
    )


def _first(name: str, variable: str, ways: Sequence[Callable[[], Binary]]) -> Binary:
    tried = []
    for way in ways:
        try:
            return way()
        except NotHereError as reason:
            tried.append(f"  - {reason}")
    raise ProvisionError(
        f"{name} is needed for these tests and was not found:\n" + "\n".join(tried) + "\n"
        f"Install {name}, or name its binary in {variable}, or start a Docker engine."
    )


# Binaries that are there


def _named(variable: str, program: str) -> tuple[Path, str]:
    named = os.environ.get(variable)
    if named:
        if not os.access(named, os.X_OK):
            raise ProvisionError(f"{variable} names {named}, which cannot be run")
        return Path(named), variable
    folders = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS])
    found = shutil.which(program, path=folders)
    if not found:
        raise NotHereError(f"{variable} is not set and {program} is not on the PATH")
    return Path(found), "PATH"


def _consul_on_path() -> Binary:
    path, origin = _named("CONSUL_BIN", "consul")
    return _checked_consul(path, origin)


def _checked_consul(path: Path, origin: str) -> Binary:
    try:
        asked = run([str(path), "version"], timeout_seconds=30)
    except NotHereError as failure:
        raise NotHereError(f"{path} does not run: {failure}") from None
    version = re.search(r"Consul v?(\d+)\.(\d+)\.(\d+)", asked)
    if not version:
        raise NotHereError(f"{path} does not say that it is Consul: {asked[:80]!r}")
    return Binary(path, tuple(map(int, version.groups())), origin)


def _redis_on_path() -> Binary:
    path, origin = _named("REDIS_BIN", "redis-server")
    return _checked_redis(path, origin)


def _checked_redis(path: Path, origin: str) -> Binary:
    try:
        asked = run([str(path), "--version"], timeout_seconds=30)
    except NotHereError as failure:
        raise NotHereError(f"{path} does not run: {failure}") from None
    version = re.search(r"Redis server v=(\d+)\.(\d+)\.(\d+)", asked)
    if not version:
        raise NotHereError(f"{path} does not say that it is Redis: {asked[:80]!r}")
    return Binary(path, tuple(map(int, version.groups())), origin)


def _rabbitmq_on_path() -> Binary:
    path, origin = _named("RABBITMQ_SERVER_BIN", "rabbitmq-server")
    if path.resolve().name == "rabbitmq-script-wrapper":
        # Debian's wrapper changes user and folder for the system service; the server itself lies beside it.
        path = path.resolve().with_name("rabbitmq-server")
    if not shutil.which("erl", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS])):
        raise NotHereError(f"{path} is there, but Erlang (erl) is not on the PATH")
    version = re.search(r"rabbitmq_server-(\d+)\.(\d+)\.(\d+)", str(path.resolve()))
    return Binary(path, tuple(map(int, version.groups())) if version else (), origin)


# Docker


def _engine() -> None:
    """Raises when no Docker engine answers."""
    if not shutil.which("docker"):
        raise NotHereError("there is no Docker")
    try:
        run(["docker", "version", "--format", "{{.Server.Version}}"], timeout_seconds=15)
    except NotHereError:
        raise NotHereError("no Docker engine answers") from None


def _consul_from_docker() -> Binary:
    """The image's binary is static, so it is copied out and run like any other."""
    target = cache_folder() / "consul-docker" / "consul"
    _copy_out(CONSUL_IMAGE, "/bin/consul", target)
    return _checked_consul(target, f"Docker image {CONSUL_IMAGE}")


def _redis_from_docker() -> Binary:
    """The image's binary needs common libraries only; where they are missing, the next way is tried."""
    target = cache_folder() / "redis-docker" / "redis-server"
    _copy_out(REDIS_IMAGE, "/usr/local/bin/redis-server", target)
    return _checked_redis(target, f"Docker image {REDIS_IMAGE}")


def _copy_out(image: str, path: str, target: Path) -> None:
    _engine()
    container = run(["docker", "create", image], timeout_seconds=300).strip()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        run(["docker", "cp", f"{container}:{path}", str(target)], timeout_seconds=120)
    finally:
        run(["docker", "rm", "--force", container], timeout_seconds=60)


def _rabbitmq_from_docker() -> Binary:
    _engine()
    run(["docker", "pull", "--quiet", RABBITMQ_IMAGE], timeout_seconds=300)
    return Binary(Path("docker"), (), "Docker", image=RABBITMQ_IMAGE)


# Debian packages


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "toska-mesh"


def _consul_cached() -> Binary:
    for path in (_unpacked_consul(), cache_folder() / "consul-docker" / "consul"):
        if path.exists():
            return _checked_consul(path, "fetched before")
    raise NotHereError(f"no copy from an earlier run in {cache_folder()}")


def _unpacked_consul() -> Path:
    return cache_folder() / "consul-debian" / "usr" / "bin" / "consul"


def _consul_from_debian() -> Binary:
    """Download Debian's package with a private apt state that is derived from the machine's own sources."""
    for tool in ("apt-get", "dpkg"):
        if not shutil.which(tool):
            raise NotHereError(f"no Debian packages here: {tool} is missing")
    with _lock("consul"):
        if not _unpacked_consul().exists():
            with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="consul-") as work:
                package = debian.download("consul", CONSUL_SUITE, Path(work))
                unpacked = Path(work) / "unpacked"
                run(["dpkg", "-x", str(package), str(unpacked)], timeout_seconds=120)
                _checked_consul(unpacked / "usr" / "bin" / "consul", "unpacked")
                target = _unpacked_consul().parents[2]
                shutil.rmtree(target, ignore_errors=True)
                unpacked.rename(target)
    return _checked_consul(_unpacked_consul(), f"Debian package of {CONSUL_SUITE}")


def _redis_cached() -> Binary:
    for path in (_redis_starter(), cache_folder() / "redis-docker" / "redis-server"):
        if path.exists():
            return _checked_redis(path, "fetched before")
    raise NotHereError(f"no copy from an earlier run in {cache_folder()}")


def _redis_starter() -> Path:
    return cache_folder() / "redis-debian" / "redis-server"


def _redis_from_debian() -> Binary:
    """This release's packages, started by a script that knows where their libraries lie."""
    for tool in ("apt-get", "dpkg"):
        if not shutil.which(tool):
            raise NotHereError(f"no Debian packages here: {tool} is missing")
    suite = _own_suite()
    with _lock("redis"):
        if not _redis_starter().exists():
            with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="redis-") as work:
                unpacked = Path(work) / "unpacked"
                for package in debian.download_all(_REDIS_PACKAGES, suite, Path(work)):
                    run(["dpkg", "-x", str(package), str(unpacked)], timeout_seconds=120)
                target = _redis_starter().parent
                libraries = ":".join(
                    str(target / folder.relative_to(unpacked)) for folder in sorted(unpacked.glob("usr/lib/*-linux-*"))
                )
                starter = unpacked / "redis-server"
                server = target / "usr" / "bin" / "redis-server"
                starter.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{server}" "$@"\n')
                starter.chmod(0o755)
                shutil.rmtree(target, ignore_errors=True)
                unpacked.rename(target)
    return _checked_redis(_redis_starter(), f"Debian package of {suite}")


def _own_suite() -> str:
    """The release of this machine: its libraries are what the server is linked against."""
    try:
        return platform.freedesktop_os_release()["VERSION_CODENAME"]
    except (OSError, KeyError):
        raise NotHereError("this machine does not say which Debian release it is") from None


def _rabbitmq_from_apt() -> Binary:
    """Debian's package, without its service."""
    if os.geteuid() != 0:
        raise NotHereError("RabbitMQ can be installed by apt only as root: sudo apt-get install rabbitmq-server")
    if not shutil.which("apt-get"):
        raise NotHereError("no Debian packages here: apt-get is missing")
    with _lock("rabbitmq"):
        debian.install("rabbitmq-server")
    return _rabbitmq_on_path()


@contextmanager
def _lock(name: str) -> Iterator[None]:
    """One process at a time fetches a server."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> int:
    try:
        for name, find in (("Consul", consul), ("RabbitMQ", rabbitmq), ("Redis", redis)):
            print(f"{name}: {find()}", flush=True)
    except ProvisionError as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
