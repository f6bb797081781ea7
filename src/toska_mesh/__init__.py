"""Toska Mesh: a service-mesh control plane for HTTP services."""

__version__ = "0.1.0"
