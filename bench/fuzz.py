"""Looks for trouble in the data path for as long as one likes, led on by the code that an input reaches.

The properties are those of `tests/unit/gateway/test_proxy_fuzz.py`. Here atheris (libFuzzer for Python) writes the
inputs: bytes from which hypothesis builds a case. What reaches new code in the gateway is kept and varied further. Each
property has a process of its own and a part of the time. atheris lives in a virtual environment of its own: nothing
of ours depends on it.

    python -m bench.fuzz --minutes 10
    python -m bench.fuzz --minutes 2 --only attacks
    python -m bench.fuzz --only attacks --again crash-0123…     one input once more, as a failing test

Exit code 1: something was found; the input is beside the corpus, and the failure is printed.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROPERTIES = {
    "split_cases": "check_splits_do_not_matter",
    "meaning_cases": "check_meaning_is_kept",
    "attacks": "check_hostile_clients",
    "poisons": "check_hostile_instances",
    "stories": "check_failing_instances",
    "tunnels": "check_tunnels",
}
WATCHED = ("client", "exchange", "upstream", "proxy", "guard", "request", "headers", "paths", "forwarded", "tunnel")
"""Modules of the gateway whose lines are counted."""

_STATS = re.compile(rb"stat::(\w+):\s+(\d+)")
_COVERED = re.compile(rb"cov: (\d+) ft: (\d+) corp: (\d+)/")
_LINES = re.compile(rb"lines: (\d+) of (\d+)")


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "toska-mesh"


def atheris_python() -> str:
    """An interpreter that has atheris; the first call installs it from PyPI."""
    home = cache() / "atheris"
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    if subprocess.run([str(python), "-c", "import atheris"], check=False, capture_output=True).returncode:
        subprocess.run([str(python), "-m", "pip", "install", "-q", "atheris"], check=True)
    return str(python)


# -- the campaign


def campaign(names: Sequence[str], minutes: float) -> int:
    python, found = atheris_python(), 0
    print(f"| property | executions | per second | edges | features | inputs kept | lines of {len(WATCHED)} modules |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in names:
        corpus = cache() / "fuzz" / name
        corpus.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        done = _inside(python, name, [str(corpus), f"-max_total_time={round(minutes * 60 / len(names))}",
            "-print_final_stats=1", "-max_len=4096", "-len_control=20", "-timeout=60", "-rss_limit_mb=2048",
            f"-artifact_prefix={corpus.parent}/{name}-"])  # fmt: skip
        said = done.stdout
        stats = {key.decode(): int(value) for key, value in _STATS.findall(said)}
        runs = stats.get("number_of_executed_units", 0)
        edges, features, kept = (_COVERED.findall(said) or [(b"?", b"?", b"?")])[-1]
        reached, of = (_LINES.findall(said) or [(b"?", b"?")])[-1]
        pace = runs / (time.monotonic() - began)
        print(
            f"| `{PROPERTIES[name]}` | {runs:,} | {pace:.0f} | {edges.decode()} | {features.decode()} "
            f"| {kept.decode()} | {reached.decode()} of {of.decode()} |",
            flush=True,
        )
        if done.returncode:
            found += 1
            print(said[-6000:].decode("utf-8", "replace"), file=sys.stderr, flush=True)
    return 1 if found else 0


def _inside(python: str, name: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    """Run this module under atheris, with our own packages beside its."""
    paths = [os.environ.get("PYTHONPATH", ""), str(ROOT / "src"), str(ROOT), sysconfig.get_path("purelib")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONHASHSEED": "0"}
    return subprocess.run(
        [python, "-m", "bench.fuzz", "--inside", name, *arguments],
        cwd=ROOT, env=environment, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


# -- inside


def fuzz(name: str, arguments: Sequence[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["toska_mesh.gateway", "toska_mesh.resilience", "toska_mesh.router"]):
        from tests.support import proxy_fuzz
    run = as_function_of_bytes(proxy_fuzz, name)
    lines = _Lines()
    lines.watch(run)
    atheris.Setup([sys.argv[0], *arguments], lines.counted)
    atheris.Fuzz()


def as_function_of_bytes(module: Any, name: str) -> Callable[[bytes], object]:
    """The property as a function of the bytes from which hypothesis draws its case."""
    from hypothesis import HealthCheck, given, settings

    check = getattr(module, PROPERTIES[name])

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(getattr(module, name))
    def test(case: Any) -> None:
        check(case)

    run: Callable[[bytes], object] = test.hypothesis.fuzz_one_input  # type: ignore[attr-defined]
    return run


class _Lines:
    """Which lines of the watched modules have ever run; counted in one of every few inputs, as it costs time."""

    EVERY = 50

    def __init__(self) -> None:
        folder = ROOT / "src" / "toska_mesh" / "gateway"
        self._files = {f"/toska_mesh/gateway/{module}.py" for module in WATCHED}
        self._all = {
            (f"/toska_mesh/gateway/{module}.py", line)
            for module in WATCHED
            for line in _code_lines(compile((folder / f"{module}.py").read_text(), module, "exec"))
        }
        self._seen: set[tuple[str, int]] = set()
        self._runs = 0
        self._run: Callable[[bytes], object] = lambda _: None

    def watch(self, run: Callable[[bytes], object]) -> None:
        self._run = run

    def counted(self, data: bytes) -> None:
        self._runs += 1
        if self._runs % self.EVERY:
            self._run(data)
            return
        before = len(self._seen)
        sys.settrace(self._on_call)
        try:
            self._run(data)
        finally:
            sys.settrace(None)
        if len(self._seen) > before:
            print(f"lines: {len(self._seen & self._all)} of {len(self._all)}", flush=True)

    def _on_call(self, frame: Any, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        for ending in self._files:
            if name.endswith(ending):
                return partial(self._on_line, ending)
        return None

    def _on_line(self, ending: str, frame: Any, event: str, argument: object) -> Any:
        self._seen.add((ending, frame.f_lineno))
        return partial(self._on_line, ending)


def _code_lines(code: Any) -> set[int]:
    """Lines inside functions; what runs at import is no achievement."""
    found: set[int] = set()
    for constant in code.co_consts:
        if hasattr(constant, "co_lines"):
            if constant.co_flags & 0x2:  # CO_NEWLOCALS: a function, no class body
                found |= {line for _, _, line in constant.co_lines() if line and line != constant.co_firstlineno}
            found |= _code_lines(constant)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--inside"]:
        fuzz(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="for all properties together; default: 10")
    parser.add_argument("--only", choices=PROPERTIES, action="append", help="one property; may be given several times")
    parser.add_argument("--again", metavar="FILE", help="run one input that was found, in this process")
    arguments = parser.parse_args()
    names = arguments.only or list(PROPERTIES)
    if arguments.again:
        from tests.support import proxy_fuzz

        as_function_of_bytes(proxy_fuzz, names[0])(Path(arguments.again).read_bytes())
        return
    sys.exit(campaign(names, arguments.minutes))


if __name__ == "__main__":
    main()
