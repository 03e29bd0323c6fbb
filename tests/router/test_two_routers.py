"""Two router processes over one cluster: either may be restarted or killed, and what the other serves goes on."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from multimodel_testbed.calls import Crowd, call
from multimodel_testbed.router_process import RouterProcess

pytestmark = pytest.mark.control_plane

PROGRAM = Path(__file__).with_name("played_router.py")
MATH = {"name": "abacus", "alias": "math", "min": 2}
STREAMS = 200
WORDS = "one two three four"
STORY = {"messages": [{"role": "user", "content": WORDS}], "stream": True, "standin": {"pause": 0.4}}


@pytest.fixture
async def routers(cluster: Any, manifest: Callable[..., Any]) -> AsyncIterator[list[RouterProcess]]:
    await cluster.apply(manifest([MATH]))
    access = {"KUBECONFIG": str(cluster.kubeconfig), "PLAYED_PODS": str(cluster.addresses)}
    options = ["--fleet=kubernetes", "--multimodel=mm", f"--namespace={cluster.namespace}"]
    made = [RouterProcess(PROGRAM, options, access) for _ in range(2)]
    try:
        await asyncio.gather(*(router.start(ready_endpoints=2) for router in made))
        yield made
    finally:
        for router in made:
            await router.kill()


async def test_a_rolling_restart_fails_no_stream(routers: list[RouterProcess]) -> None:
    crowd = Crowd([router.url for router in routers], STREAMS, STORY)
    await asyncio.sleep(2)  # until all of them have come
    for router in routers:
        assert await router.stop() == 0
        await router.start(ready_endpoints=2)
    answers = await crowd.leave()
    lost = [str(answer) for answer in answers if not answer.good or answer.text != f"You said: {WORDS}"]
    assert lost == []
    assert len(answers) > STREAMS


async def test_a_router_that_is_killed_takes_only_its_own_streams(routers: list[RouterProcess]) -> None:
    crowd = Crowd([router.url for router in routers], 40, STORY)
    await asyncio.sleep(2.5)
    victim, survivor = routers
    await victim.kill()
    gone = time.time()
    fresh = await call([victim.url, survivor.url], {"messages": [{"role": "user", "content": "hello"}]})
    assert fresh.good
    assert fresh.seconds < 1
    answers = await crowd.leave()
    lost = [answer for answer in answers if not answer.good]
    assert {answer.url for answer in lost} == {victim.url}
    assert all(answer.began <= gone for answer in lost), "who came later went to the other one"
    assert all(answer.text == f"You said: {WORDS}" for answer in answers if answer.good)


@pytest.mark.parametrize(("held", "load"), [(1, 0.5), (10, 0.5), (100, 0.5), (100, 3.0)])
async def test_a_wake_costs_little_more_than_the_load(
    start_on_processes: Any, tmp_path: Path, held: int, load: float
) -> None:
    loaded = tmp_path / "loaded"
    script = {"load_seconds": load, "loaded": str(loaded)}
    router = await start_on_processes([MATH | {"min": 0, "standin": script}])
    body = {"messages": [{"role": "user", "content": "hello"}]}
    answers = await asyncio.gather(*(call([router.url], body) for _ in range(held)))
    assert all(answer.good for answer in answers)
    ready = (await asyncio.to_thread(loaded.stat)).st_mtime
    assert max(answer.ended - ready for answer in answers) < 1
