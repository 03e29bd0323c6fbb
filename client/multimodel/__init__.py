"""The `multimodel` command and the Python client."""

from multimodel.client import AsyncClient, Client, MultiModelError

__all__ = ["AsyncClient", "Client", "MultiModelError"]
