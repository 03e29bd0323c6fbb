"""A burst at once, then no faster than the rate."""

import asyncio

from multimodel_operator.pace import Pace


async def test_a_burst_then_the_rate() -> None:
    loop = asyncio.get_running_loop()
    pace = Pace(rate=100, burst=10)
    began = loop.time()
    for _ in range(10):
        await pace.turn()
    assert loop.time() - began < 0.05
    await asyncio.gather(*(pace.turn() for _ in range(20)))
    assert 0.19 < loop.time() - began < 1.0


async def test_a_rest_fills_the_burst_up_again() -> None:
    loop = asyncio.get_running_loop()
    pace = Pace(rate=1000, burst=2)
    for _ in range(4):
        await pace.turn()
    await asyncio.sleep(0.01)
    began = loop.time()
    await pace.turn()
    await pace.turn()
    assert loop.time() - began < 0.001
