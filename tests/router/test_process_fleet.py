"""Models as processes of this machine: crashes, back-off, environment, and nothing left behind."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from multimodel_api.launch import server_arguments
from multimodel_router.fleet import Endpoint
from multimodel_router.fleet.processes import ProcessFleet
from multimodel_router.fleet.replica import MAX_BACK_OFF, back_off
from multimodel_router.fleet.server_process import Launch, environment_of, model_server_command
from multimodel_router.upstream import Upstream

Start = Callable[..., Awaitable[Any]]
MODEL = {"name": "abacus", "alias": "math", "min": 1}


@pytest.fixture
def server_processes() -> Callable[[], Awaitable[int]]:
    """Counts the model servers that have been started below this process since the test began."""
    earlier = set(psutil.Process().children(recursive=True))

    async def count() -> int:
        started = set(psutil.Process().children(recursive=True)) - earlier
        return sum(p.name().startswith("python") for p in started)

    return count


def test_back_off_doubles_from_nothing_to_its_limit() -> None:
    assert [back_off(crashes) for crashes in range(7)] == [0, 0, 1, 2, 4, 8, 16]
    assert back_off(100) == MAX_BACK_OFF


def test_the_real_model_server_is_started_with_the_arguments_of_the_contract(manifest: Any, tmp_path: Path) -> None:
    spec = manifest([MODEL], engine={"maxSeqs": 3}).spec
    model = spec.models[0]
    start = Launch(model, spec.engine_of(model), Endpoint("127.0.0.1", 5), tmp_path / "f")
    arguments = server_arguments(
        model, spec.engine_of(model), host="127.0.0.1", port=5, failure_file=str(tmp_path / "f")
    )
    whole = [sys.executable, "-m", "multimodel_server", *arguments, "--drain-seconds=600"]
    assert model_server_command(start) == whole
    assert "--max-seqs=3" in arguments


def test_only_plain_environment_values_reach_a_process(manifest: Any) -> None:
    env = [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
    assert environment_of(manifest([MODEL | {"env": env}]).spec.models[0]) == {"A": "1"}


async def test_a_server_that_crashes_is_started_again(start_on_processes: Start, until: Any) -> None:
    router = await start_on_processes([MODEL])
    await router.until("math", "loaded")
    for _ in range(2):
        (before,) = router.fleet.view("abacus").ready
        next(p for p in psutil.Process().children() if f"--port={before.port}" in p.cmdline()).kill()

        async def replaced(old: Any = (before,)) -> bool:
            return router.fleet.view("abacus").ready not in ((), old)

        await until(replaced, True)
    assert await router.status("math") == "loaded"


async def test_crashes_in_a_row_are_a_failure_that_says_how_it_ended(start_on_processes: Start) -> None:
    router = await start_on_processes([MODEL | {"standin": {"crash": 7}}])
    await router.until("math", "internal_error")
    reply = await router.http.post("/v1/models/status", json={"model_id": "math"})
    assert reply.json()["error"].startswith("ServerCrashed: the model server exited with code 7 3 times in a row")


async def test_unloading_ends_a_server_that_crashes_again_and_again(
    start_on_processes: Start, until: Any, server_processes: Any
) -> None:
    router = await start_on_processes([MODEL | {"standin": {"crash": 7}}])
    await router.until("math", "internal_error")
    await router.http.post("/v1/models/unload", json={"model_id": "math"})

    await until(server_processes, 0)
    assert await router.status("math") == "unloaded"


async def test_stopping_the_fleet_leaves_no_process_and_no_file(
    manifest: Any, tmp_path: Path, until: Any, server_processes: Any
) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    )
    fleet = ProcessFleet(
        manifest([MODEL, MODEL | {"name": "scribe", "alias": "words"}]).spec,
        Upstream(),
        command=lambda _: [sys.executable, "-S", "-c", stubborn],
        end_seconds=0.3,
    )
    folder = fleet._folder.name
    await fleet.start()

    await until(server_processes, 2)
    await fleet.stop()
    assert await server_processes() == 0
    assert not await asyncio.to_thread(os.path.lexists, folder)


async def test_a_program_that_cannot_be_started_is_a_crash(manifest: Any, until: Any) -> None:
    fleet = ProcessFleet(manifest([MODEL]).spec, Upstream(), command=lambda _: ["/nonexistent/program"])
    await fleet.start()

    async def reason() -> str | None:
        failure = fleet.view("abacus").failure
        return failure and failure.reason.value

    await until(reason, "ServerCrashed")
    await fleet.stop()


@pytest.mark.parametrize("replicas", [2, 3])
async def test_as_many_replicas_as_the_manifest_says(start_on_processes: Start, until: Any, replicas: int) -> None:
    router = await start_on_processes([MODEL | {"min": replicas}])

    async def ready() -> int:
        return len(set(router.fleet.view("abacus").ready))

    await until(ready, replicas)
    await asyncio.gather(*(router.fleet.scale("abacus", n) for n in (0, 1)))
    assert router.fleet.view("abacus").desired == 1
    await until(ready, 1)
