"""The router as a process, in a cluster whose pods are played: their addresses are looked up in a file.

Run as a script with the router's own arguments; the environment variable PLAYED_PODS names the file.
"""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

from multimodel_router import __main__ as program
from multimodel_router.fleet import Endpoint
from multimodel_router.upstream import Upstream, dial_tcp

PODS = Path(os.environ["PLAYED_PODS"])


async def dial_played(endpoint: Endpoint, protocol: Callable[[], asyncio.Protocol]) -> object:
    local = json.loads(PODS.read_text()).get(endpoint.host)  # noqa: ASYNC240  (a few bytes)
    if local is None:
        raise ConnectionRefusedError(f"no pod has the address {endpoint}")
    return await dial_tcp(Endpoint(*local), protocol)


program.Upstream = lambda: Upstream(dial_played)

if __name__ == "__main__":  # worker processes import this file
    program.main()
