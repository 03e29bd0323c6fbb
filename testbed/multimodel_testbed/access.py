"""Who may call the API server, and how: tokens, kubeconfig files, and the few calls the test cluster itself makes."""

import json
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx


@dataclass(frozen=True)
class User:
    """An identity of the cluster, known to the API server by its token."""

    name: str
    group: str
    token: str


def make_user(name: str, group: str = "") -> User:
    """Return a user with a fresh random token."""
    return User(name, group, secrets.token_urlsafe(32))


def write_token_file(path: Path, users: Mapping[str, User]) -> None:
    """Write the API server's static token file, readable by its owner alone."""
    path.touch(mode=0o600)
    lines = [f"{user.token},{user.name},{number},{user.group}" for number, user in enumerate(users.values())]
    path.write_text("\n".join(lines) + "\n")


def write_kubeconfig(path: Path, url: str, ca_file: Path, user: User) -> None:
    """Write a kubeconfig (JSON, which is YAML too) for one user, readable by its owner alone."""
    path.touch(mode=0o600)
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "multimodel",
        "clusters": [{"name": "multimodel", "cluster": {"server": url, "certificate-authority": str(ca_file)}}],
        "users": [{"name": user.name, "user": {"token": user.token}}],
        "contexts": [{"name": "multimodel", "context": {"cluster": "multimodel", "user": user.name}}],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


class ApiServer:
    """The few calls that the test cluster makes itself, as its administrator."""

    def __init__(self, url: str, ca_file: Path, user: User) -> None:
        trust = ssl.create_default_context(cafile=ca_file)
        headers = {"Authorization": f"Bearer {user.token}"}
        self._http = httpx.Client(base_url=url, verify=trust, headers=headers, trust_env=False, timeout=30)

    def exists(self, path: str) -> bool:
        """Tell whether the API server is there and answers `path` with success."""
        try:
            return self._http.get(path).is_success
        except httpx.TransportError:
            return False

    def get(self, path: str) -> Any:
        """Return the decoded object at `path`; raises httpx.HTTPStatusError where it is not there."""
        return self._http.get(path).raise_for_status().json()

    def create(self, path: str, manifest: Mapping[str, Any]) -> None:
        """Create an object in the collection at `path`."""
        self._http.post(path, json=manifest).raise_for_status()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
