"""Compiles the data path with mypyc when asked to; otherwise everything stays plain Python.

    TOSKA_MESH_COMPILE=1 pip install .

The same sources, the same tests; the plain modules are the fallback wherever there is no compiler. All else about the
package stands in pyproject.toml.
"""

import os

from setuptools import setup

COMPILED = {
    "gateway": (
        "accesslog auth client cors exchange firstline forwarded goodbye headers local paths problems proxy "
        "request stats turns upstream"
    ),
    "guard": "guard",
    "resilience": "breaker budget ratelimit suspicion",
    "router": "cycles hashed picker sampled service strategies target",
    "telemetry": "trace",
}
"""What runs on every request, by package. One group: calls between these modules are calls in C."""


def extensions() -> list[object]:
    if os.environ.get("TOSKA_MESH_COMPILE", "") in ("", "0"):
        return []
    try:
        from mypyc.build import mypycify
    except ImportError:
        return []  # the installer is only asking what is needed to build: see `setup_requires`
    paths = [f"src/toska_mesh/{package}/{name}.py" for package, names in COMPILED.items() for name in names.split()]
    return list(mypycify(paths, opt_level="3", debug_level="0"))


setup(
    ext_modules=extensions(),
    setup_requires=["mypy>=1.14"] if os.environ.get("TOSKA_MESH_COMPILE", "") not in ("", "0") else [],
)
