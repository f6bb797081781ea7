"""The same small app in every way that a service may be written. Each is imported alone: processes start with it."""

import importlib
from typing import Any

from toska_mesh.sdk.context import current

KINDS = {"aiohttp": "uvicorn", "fastapi": "uvicorn", "starlette": "granian"}
"""Which app is carried by which server; aiohttp brings its own."""


def make_app(kind: str) -> Any:
    return importlib.import_module(f"tests.integration.sdk.app_{kind}").make_app()


def request_id() -> str:
    context = current()
    return context.request_id if context is not None else ""
