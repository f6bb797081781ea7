"""Debian packages: one unpacked from another release without touching the system, or one installed without a service.

Addresses of archives are never known here; they are taken from the machine's own apt configuration.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.shell import NotHereError, run

_DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def download(package: str, suite: str, work: Path) -> Path:
    """The .deb of a package from another suite of the mirrors that this machine uses."""
    return download_all((package,), suite, work)[0]


def download_all(packages: Sequence[str], suite: str, work: Path) -> list[Path]:
    """The .deb of each package, in order, without what they depend on."""
    failures = []
    for mirror in _mirrors(work):
        for trust in _trusts():
            folder = Path(tempfile.mkdtemp(dir=work))
            options = _private_apt(folder, f"deb {trust}{mirror} {suite} main\n")
            try:
                run(["apt-get", *options, "update"], timeout_seconds=300)
                run(["apt-get", *options, "download", *packages], timeout_seconds=300, cwd=folder)
            except NotHereError as failure:
                failures.append(str(failure))
                continue
            found = [sorted(folder.glob(f"{package}_*.deb")) for package in packages]
            if all(found):
                return [files[0] for files in found]
            failures.append("apt-get downloaded nothing")
    raise NotHereError(
        f"apt has no {' or '.join(packages)} of {suite}: " + "; ".join(failures or ["no source of packages is set up"])
    )


def _mirrors(work: Path) -> list[str]:
    """Addresses of the archives in the machine's apt configuration, without the per-suite security ones.

    apt knows its targets only after an update; on a machine that never had one, a private one is made.
    """
    lists = work / "machine-lists"
    (lists / "partial").mkdir(parents=True)
    private = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={work}", "-o", "APT::Sandbox::User=root"]
    for options in ([], private):
        if options:
            run(["apt-get", *options, "update"], timeout_seconds=300)
        fields = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
        listed = run(
            ["apt-get", *options, "indextargets", "--format", fields, "Created-By: Packages"], timeout_seconds=60
        )
        rows = [line.split() for line in listed.splitlines()]
        main = [row[0] for row in rows if len(row) == 3 and row[2] == "main" and not row[1].endswith("-security")]
        if main:
            return list(dict.fromkeys(main))
    return []


def _trusts() -> Iterator[str]:
    """Source options to try: with Debian's keyring, with the keys of the machine, and last without a signature.

    A machine may hold only the keys of newer releases than the suite. What is fetched is a server for tests.
    """
    if _DEBIAN_KEYRING.exists():
        yield f"[signed-by={_DEBIAN_KEYRING}] "
    yield ""
    yield "[trusted=yes] "


def _private_apt(folder: Path, source: str) -> list[str]:
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (folder / name).mkdir(parents=True)
    (folder / "sources.list").write_text(source)
    options = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": folder / "parts",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Acquire::Check-Valid-Until": "false",  # a release that gets no more updates
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",  # the folder is ours alone
        "APT::Update::Error-Mode": "any",
    }
    return [part for key, value in options.items() for part in ("-o", f"{key}={value}")]


def install(package: str) -> None:
    """Install a package as root, without letting it start a service."""
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        run(["apt-get", "-q", "update"], timeout_seconds=300, env=quiet)
        waiting = ["-o", "DPkg::Lock::Timeout=300"]
        command = ["apt-get", *waiting, "-q", "-y", "install", "--no-install-recommends", package]
        run(command, timeout_seconds=900, env=quiet)


@contextmanager
def _no_services() -> Iterator[None]:
    """Debian asks policy-rc.d before a package starts its service; 101 forbids it."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():  # somebody else has decided
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)
