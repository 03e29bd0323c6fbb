"""A relay without a word of HTTP: what a router on uvloop takes at least. `bare_relay.py PORT UPSTREAM_PORT`."""

import asyncio
import sys
from typing import cast

import uvloop

HOST = "127.0.0.1"


class Side(asyncio.Protocol):
    """One side of a relayed connection; `other` is where its bytes go."""

    other: asyncio.Transport | None = None

    def __init__(self) -> None:
        self.early: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        """Pass bytes on, or keep them until there is another side."""
        if self.other:
            self.other.write(data)
        else:
            self.early.append(data)

    def connection_lost(self, _error: Exception | None) -> None:
        """End both."""
        if self.other:
            self.other.close()


class Client(Side):
    """The side that connects, for which the other is connected to."""

    def __init__(self, upstream: int) -> None:
        super().__init__()
        self._upstream = upstream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect to the upstream."""
        self._connecting = asyncio.get_running_loop().create_task(self._connect(cast("asyncio.Transport", transport)))

    async def _connect(self, here: asyncio.Transport) -> None:
        there, side = await asyncio.get_running_loop().create_connection(Side, HOST, self._upstream)
        self.other, side.other = there, here
        there.writelines(self.early)


async def relay(port: int, upstream: int) -> None:
    """Relay until cancelled."""
    server = await asyncio.get_running_loop().create_server(lambda: Client(upstream), HOST, port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(relay(*map(int, sys.argv[1:])))
