"""A client made from `proto/` alone: what a stranger with the contract in hand would have, and no code of ours."""

import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import grpc_tools
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent.parent.parent / "proto"


def generate() -> tuple[ModuleType, ModuleType]:
    """Generate into a temporary folder and import: the messages and the stubs."""
    folder = tempfile.mkdtemp(prefix="toska-contract-")
    files = [str(path) for path in PROTO.glob("*.proto")]
    include = str(Path(grpc_tools.__file__).parent / "_proto")
    code = protoc.main(
        ["protoc", f"-I{PROTO}", f"-I{include}", f"--python_out={folder}", f"--grpc_python_out={folder}", *files]
    )
    if code:
        raise SystemExit(f"protoc failed with {code}")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("discovery_pb2"), importlib.import_module("discovery_pb2_grpc")
    finally:
        sys.path.remove(folder)
