"""Generate `src/toska_mesh/pb` from `proto/`, or prove with `--check` that it is fresh.

The generated modules are checked in, so that installing the package needs no compiler. protoc writes imports as if its
output folder were on the path; they are rewritten to the package here.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
PACKAGE = ROOT / "src" / "toska_mesh" / "pb"

_PLAIN_IMPORT = re.compile(r"^import (\w+_pb2) as ", re.MULTILINE)


def generate(target: Path) -> None:
    """Write the modules of every file in `proto/` into `target`. Raises CalledProcessError when protoc refuses."""
    sources = sorted(path.name for path in PROTO.glob("*.proto"))
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}"),
        *(f"--python_out={target}", f"--pyi_out={target}", f"--grpc_python_out={target}", *sources),
    ]
    subprocess.run(command, check=True, timeout=60)  # noqa: S603  # our own compiler on our own files
    for module in target.glob("*_pb2_grpc.py"):
        module.write_text(_PLAIN_IMPORT.sub(r"from toska_mesh.pb import \1 as ", module.read_text()))


def stale() -> list[str]:
    """Names of generated files that differ from what is checked in, are missing there, or are left over."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        wanted = {path.name: path.read_bytes() for path in fresh.iterdir()}
    present = {path.name: path.read_bytes() for path in PACKAGE.glob("*_pb2*.py*")}
    return sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something is not fresh")
    if not parser.parse_args().check:
        generate(PACKAGE)
        return 0
    names = stale()
    if names:
        sys.stderr.write(f"not fresh, run `make proto`: {', '.join(names)}\n")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
