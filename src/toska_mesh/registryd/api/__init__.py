"""Consul's HTTP API over the state: one module per part of it, independent of the HTTP server that carries it."""

from toska_mesh.registryd.api.dispatch import Api

__all__ = ["Api"]
