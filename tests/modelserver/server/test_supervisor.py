"""The supervisor's decisions, with scripted engines that die, hang and refuse when told to."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.progress import LoadPhase
from multimodel_server.engine.messages import (
    Cancel,
    FromEngine,
    Generate,
    Heartbeat,
    LoadFailed,
    Ready,
    RequestFailed,
    Sampling,
    Sleep,
    Slept,
    Step,
    Stop,
    ToEngine,
    Tokens,
    Wake,
    Woken,
)
from multimodel_server.errors import EngineDiedError, EngineGoneError, LoadError, RequestRefusedError
from multimodel_server.progress import LoadClock
from multimodel_server.recovery import EngineLimits, EngineWatch, is_wedged, may_reboot, may_requeue
from multimodel_server.supervisor import Generation, Supervisor

READY = Ready(max_request_tokens=100, kv_blocks=10, block_size=16)


class ScriptedEngine:
    """An engine without a process: it loads, answers the dummy run, and then does what the test says."""

    def __init__(self, plan: str, receive: Callable[[FromEngine], None], ended: Callable[[str], None]) -> None:
        self.plan = plan
        self.receive = receive
        self._ended: Callable[[str], None] | None = ended
        self.sent: list[ToEngine] = []
        if plan == "dies loading":
            self.die()
        elif plan == "fails loading":
            self.soon(lambda: self.receive(LoadFailed("BadWeights", "model.safetensors: cut off")))
        elif plan == "small":
            self.soon(lambda: self.receive(Ready(max_request_tokens=3, kv_blocks=1, block_size=16)))
        elif plan != "is silent":
            self.soon(lambda: self.receive(READY))

    def soon(self, action: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(action)

    def send(self, message: ToEngine) -> None:
        self.sent.append(message)
        if isinstance(message, Generate) and message.request_id == "warm-up":
            if self.plan == "dies warming up":
                self.die()
            elif self.plan == "refuses the dummy":
                self.soon(lambda: self.receive(RequestFailed("warm-up", "no")))
            else:
                self.soon(lambda: self.receive(Step([Tokens("warm-up", [1], "length")])))
        elif isinstance(message, Generate) and self.plan == "dies of work":
            self.die()
        elif isinstance(message, Stop):
            self.die("ended with exit code 0")
        elif isinstance(message, Wake) and self.plan == "dies in its sleep":
            self.die()
        elif isinstance(message, Wake):
            self.soon(lambda: self.receive(Woken()))

    def die(self, how: str = "was killed by SIGKILL") -> None:
        if self._ended is not None:
            ended, self._ended = self._ended, None
            self.soon(lambda: ended(how))

    def kill(self) -> None:
        self.die()

    @property
    def asked(self) -> list[str]:
        return [message.request_id for message in self.sent if isinstance(message, Generate)][1:]


@dataclass
class Scene:
    """A supervisor with its engines and what it told its observer."""

    plans: list[str]
    limits: EngineLimits = field(default_factory=EngineLimits)
    engines: list[ScriptedEngine] = field(default_factory=list)
    heartbeats: list[Heartbeat] = field(default_factory=list)
    reboots: int = 0
    failure: LoadFailure | None = None

    def __post_init__(self) -> None:
        self.progress = LoadClock(asyncio.get_running_loop().time)
        self.supervisor = Supervisor(
            self.launch, self, model_id="org/model", warm_up_ids=[5], progress=self.progress, limits=self.limits
        )

    def launch(self, receive: Callable[[FromEngine], None], ended: Callable[[str], None]) -> ScriptedEngine:
        plan = self.plans[min(len(self.engines), len(self.plans) - 1)]
        if plan == "cannot start":
            raise OSError("no more processes")
        self.engines.append(ScriptedEngine(plan, receive, ended))
        return self.engines[-1]

    def heard(self, heartbeat: Heartbeat) -> None:
        self.heartbeats.append(heartbeat)

    def waited(self, seconds: float) -> None:
        pass

    def rebooted(self) -> None:
        self.reboots += 1

    def gave_up(self, failure: LoadFailure) -> None:
        self.failure = failure

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110  (what it waits for is not of one kind)
                await asyncio.sleep(0.001)


Start = Callable[..., Awaitable[Scene]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    scenes: list[Scene] = []

    async def started(*plans: str, **limits: float) -> Scene:
        scenes.append(Scene(list(plans) or ["serves"], EngineLimits(**limits)))  # type: ignore[arg-type]
        await scenes[-1].supervisor.start()
        return scenes[-1]

    yield started
    for scene in scenes:
        await scene.supervisor.stop()


async def collect(generation: Generation) -> list[int]:
    return [token async for tokens in generation.tokens() for token in tokens.token_ids]


async def ask(scene: Scene, max_tokens: int = 3) -> list[int]:
    with scene.supervisor.generation([1, 2], Sampling(max_tokens=max_tokens)) as generation:
        return await collect(generation)


def asking(scene: Scene) -> "asyncio.Task[list[int]]":
    return asyncio.create_task(ask(scene))


async def test_a_request_is_answered_and_not_cancelled(start: Start) -> None:
    scene = await start()
    answer = asking(scene)
    await scene.until(lambda: scene.engines[0].asked)
    (request_id,) = scene.engines[0].asked
    scene.engines[0].receive(Step([Tokens(request_id, [7])]))
    scene.engines[0].receive(Step([Tokens(request_id, [8], "length")]))
    assert await answer == [7, 8]
    assert not [message for message in scene.engines[0].sent if isinstance(message, Cancel)]


async def test_a_request_that_is_left_is_cancelled(start: Start) -> None:
    scene = await start()
    answer = asking(scene)
    await scene.until(lambda: scene.engines[0].asked)
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    assert scene.engines[0].sent[-1] == Cancel(scene.engines[0].asked[0])
    scene.engines[0].receive(Step([Tokens(scene.engines[0].asked[0], [7])]))


async def test_a_refused_request_harms_no_other(start: Start) -> None:
    scene = await start()
    answers = [asking(scene), asking(scene)]
    await scene.until(lambda: len(scene.engines[0].asked) == 2)
    first, second = scene.engines[0].asked
    scene.engines[0].receive(RequestFailed(first, "too odd"))
    scene.engines[0].receive(Step([Tokens(second, [7], "stop")]))
    with pytest.raises(RequestRefusedError, match="too odd"):
        await answers[0]
    assert await answers[1] == [7]


async def test_a_dead_engine_is_replaced_and_says_so(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scene = await start("serves", "is silent")
    scene.engines[0].die()
    await scene.until(lambda: len(scene.engines) == 2)
    assert not scene.supervisor.is_ready
    assert scene.supervisor.is_live
    scene.engines[1].receive(READY)
    await scene.until(lambda: scene.supervisor.is_ready)
    messages = [re.sub(r"\d+\.\d+s", "0s", record.message) for record in caplog.records]
    assert messages == [
        "Beginning dummy run.",
        "Dummy run completed in 0s.",
        "Engine org/model is dead, rebooting",
        "Beginning dummy run.",
        "Dummy run completed in 0s.",
        "Successfully rebooted engine org/model",
    ]
    assert (scene.reboots, scene.failure) == (1, None)


async def test_only_requests_that_nobody_saw_go_to_the_next_engine(start: Start) -> None:
    scene = await start()
    unseen, seen = asking(scene), asking(scene)
    await scene.until(lambda: len(scene.engines[0].asked) == 2)
    first, second = scene.engines[0].asked
    scene.engines[0].receive(Step([Tokens(second, [7])]))
    scene.engines[0].die()
    with pytest.raises(EngineDiedError, match="was killed by SIGKILL while it answered"):
        await seen
    await scene.until(lambda: len(scene.engines) == 2 and scene.engines[1].asked)
    assert scene.engines[1].asked == [first]
    scene.engines[1].receive(Step([Tokens(first, [9], "stop")]))
    assert await unseen == [9]


async def test_requests_made_during_a_reboot_wait_in_order(start: Start) -> None:
    scene = await start("serves", "is silent")
    early = asking(scene)
    await scene.until(lambda: scene.engines[0].asked)
    scene.engines[0].die()
    await scene.until(lambda: len(scene.engines) == 2)
    late, left = asking(scene), asking(scene)
    await asyncio.sleep(0)
    left.cancel()
    scene.engines[1].receive(READY)
    await scene.until(lambda: len(scene.engines[1].asked) == 2)
    for token, request_id in enumerate(scene.engines[1].asked):
        scene.engines[1].receive(Step([Tokens(request_id, [token], "stop")]))
    assert (await early, await late) == ([0], [1])


async def test_a_request_that_kills_engines_is_not_tried_for_ever(start: Start) -> None:
    scene = await start("dies of work", "dies of work", "serves")
    with pytest.raises(EngineDiedError):
        await ask(scene)
    await scene.until(lambda: scene.supervisor.is_ready)
    assert (len(scene.engines), scene.reboots) == (3, 2)


async def test_a_rebooted_engine_with_less_room_refuses_what_no_longer_fits(start: Start) -> None:
    scene = await start("serves", "small")
    answer = asking(scene)
    await scene.until(lambda: scene.engines[0].asked)
    scene.engines[0].die()
    with pytest.raises(RequestRefusedError, match="no room for 5 tokens"):
        await answer


async def test_past_the_budget_of_reboots_it_gives_up(start: Start) -> None:
    scene = await start("serves", "dies loading", "dies warming up", "dies loading", reboots=3)
    waiting = asking(scene)
    await scene.until(lambda: scene.engines[0].asked)
    scene.engines[0].die()
    with pytest.raises(EngineGoneError, match="died too often"):
        await waiting
    assert (scene.reboots, len(scene.engines)) == (3, 4)
    assert not scene.supervisor.is_live
    assert scene.failure is not None
    assert scene.failure.reason is FailureReason.ENGINE_CRASHED
    assert scene.progress.phase is LoadPhase.FAILED
    with pytest.raises(EngineGoneError):
        await ask(scene)


async def test_a_reboot_that_cannot_load_gives_up_at_once(start: Start) -> None:
    scene = await start("serves", "fails loading")
    scene.engines[0].die()
    await scene.until(lambda: scene.failure)
    assert scene.failure == LoadFailure(reason=FailureReason.BAD_WEIGHTS, message="model.safetensors: cut off")
    assert len(scene.engines) == 2


async def test_a_supervisor_that_fails_gives_up_aloud(start: Start) -> None:
    scene = await start("serves", "cannot start")
    waiting = asking(scene)
    await scene.until(lambda: scene.engines[0].asked)
    scene.engines[0].die()
    with pytest.raises(EngineGoneError, match="no more processes"):
        await waiting
    assert not scene.supervisor.is_live
    assert scene.failure is not None


async def test_a_silent_engine_with_work_is_killed_and_replaced(start: Start) -> None:
    scene = await start(heartbeat_seconds=0.05)
    answer = asking(scene)
    await scene.until(lambda: len(scene.engines) == 2 and scene.engines[1].asked)
    scene.engines[1].receive(Step([Tokens(scene.engines[1].asked[0], [4], "stop")]))
    assert await answer == [4]


async def test_a_silent_engine_without_work_is_left_alone(start: Start) -> None:
    scene = await start(heartbeat_seconds=0.02)
    await asyncio.sleep(0.1)
    assert (scene.reboots, scene.supervisor.is_live) == (0, True)


async def test_an_engine_that_hangs_while_loading_is_killed(start: Start) -> None:
    with pytest.raises(LoadError, match="was killed by SIGKILL while it loaded"):
        await start("is silent", load_silence_seconds=0.05)


@pytest.mark.parametrize(
    ("plan", "reason", "words"),
    [
        ("fails loading", FailureReason.BAD_WEIGHTS, "cut off"),
        ("dies loading", FailureReason.ENGINE_CRASHED, "while it loaded"),
        ("dies warming up", FailureReason.ENGINE_CRASHED, "while it loaded"),
        ("refuses the dummy", FailureReason.ENGINE_CRASHED, "dummy run failed: no"),
    ],
)
async def test_a_first_load_that_fails(start: Start, plan: str, reason: FailureReason, words: str) -> None:
    with pytest.raises(LoadError, match=words) as caught:
        await start(plan)
    assert caught.value.failure.reason is reason


async def test_stopping_ends_the_requests(start: Start) -> None:
    scene = await start()
    answer = asking(scene)
    await scene.until(lambda: scene.engines[0].asked)
    await scene.supervisor.stop()
    with pytest.raises(EngineGoneError, match="shutting down"):
        await answer
    assert Stop() in scene.engines[0].sent
    assert len(scene.engines) == 1


LIMITS = EngineLimits(heartbeat_seconds=30, load_silence_seconds=600, reboots=2, reboot_window_seconds=600)


@pytest.mark.parametrize(
    ("silence", "loading", "has_work", "wedged"),
    [
        (31, False, True, True),
        (29, False, True, False),
        (99, False, False, False),
        (99, True, True, False),
        (601, True, False, True),
    ],
)
def test_when_an_engine_is_wedged(silence: float, loading: bool, has_work: bool, wedged: bool) -> None:
    watch = EngineWatch(last_heard=1000, loading=loading, has_work=has_work)
    assert is_wedged(watch, 1000 + silence, LIMITS) is wedged


def test_the_budget_of_reboots_forgets_old_ones() -> None:
    assert may_reboot([], 0, LIMITS)
    assert not may_reboot([0, 500], 599, LIMITS)
    assert may_reboot([0, 500], 600, LIMITS)


def test_which_requests_are_queued_again() -> None:
    assert may_requeue(has_tokens=False, attempts=1, limits=LIMITS)
    assert not may_requeue(has_tokens=True, attempts=1, limits=LIMITS)
    assert not may_requeue(has_tokens=False, attempts=2, limits=LIMITS)


async def test_requests_wait_until_the_engine_sleeps_and_then_wake_it(start: Start) -> None:
    scene = await start()
    rest, engine = scene.supervisor.rest, scene.engines[0]
    sleeping = asyncio.create_task(rest.sleep(keep_weights=False))
    await scene.until(lambda: engine.sent[-1] == Sleep(keep_weights=False))
    with scene.supervisor.generation([1], Sampling(max_tokens=1)):
        assert engine.asked == []
        engine.receive(Slept())
        await sleeping
        assert rest.is_asleep
        assert len(engine.asked) == 1
        engine.receive(Woken())
        assert not rest.is_asleep


async def test_a_request_that_is_given_up_before_the_engine_sleeps_does_not_wake_it(start: Start) -> None:
    scene = await start()
    engine = scene.engines[0]
    sleeping = asyncio.create_task(scene.supervisor.rest.sleep(keep_weights=True))
    await scene.until(lambda: engine.sent[-1] == Sleep())
    with scene.supervisor.generation([1], Sampling(max_tokens=1)):
        pass
    engine.receive(Slept())
    await sleeping
    assert engine.sent[-1] == Sleep()


async def test_sleep_and_wake_take_turns(start: Start) -> None:
    scene = await start()
    rest, engine = scene.supervisor.rest, scene.engines[0]
    sleeping = asyncio.create_task(rest.sleep(keep_weights=True))
    await scene.until(lambda: engine.sent[-1] == Sleep())
    waking = asyncio.create_task(rest.wake())
    engine.receive(Woken())  # by a request that was on its way
    await asyncio.sleep(0)
    assert not sleeping.done()
    assert engine.sent[-1] == Sleep()
    engine.receive(Slept())
    await asyncio.gather(sleeping, waking)
    assert engine.sent[-1] == Wake()
    assert not rest.is_asleep


async def test_an_engine_that_dies_when_it_is_woken_is_replaced_by_one_that_is_awake(start: Start) -> None:
    scene = await start("dies in its sleep", "serves")
    rest = scene.supervisor.rest
    rest.heard(Slept())
    with pytest.raises(EngineDiedError):
        await rest.wake()
    await scene.until(lambda: len(scene.engines) == 2 and scene.supervisor.is_ready)
    assert not rest.is_asleep
    await rest.wake()


async def test_an_engine_that_dies_before_it_sleeps_leaves_no_request_waiting(start: Start) -> None:
    scene = await start()
    sleeping = asyncio.create_task(scene.supervisor.rest.sleep(keep_weights=True))
    await scene.until(lambda: scene.engines[0].sent[-1] == Sleep())
    with scene.supervisor.generation([1], Sampling(max_tokens=1)):
        scene.engines[0].die()
        with pytest.raises(EngineDiedError):
            await sleeping
        await scene.until(lambda: len(scene.engines) == 2 and scene.engines[1].asked)
