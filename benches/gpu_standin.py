"""A model server whose engine makes tokens without computing them: what is left is what HTTP costs."""

import os
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection

from multimodel_server import engine_process, logs, options, server
from multimodel_server.config import EngineConfig
from multimodel_server.engine.messages import (
    Cancel,
    Generate,
    Heartbeat,
    Ready,
    Step,
    Stop,
    ToEngine,
    Tokens,
    decode_to_engine,
    encode,
)

STEP_SECONDS = 0.002
HEARTBEAT_SECONDS = 0.5
TOKEN_IDS = range(300, 500)
"""Words of every model that the benchmark makes."""


class StandIn:
    """Makes a token a step for every request."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._left: dict[str, int] = {}
        self._made = 0
        self._heard = 0.0
        self._stopped = False

    def run(self) -> None:
        """Turn until told to stop."""
        self._connection.send_bytes(encode(Ready(max_request_tokens=4096, kv_blocks=1 << 20, block_size=16)))
        while not self._stopped:
            self._heartbeat_if_due()
            self._take(self._messages())
            if self._left:
                self._connection.send_bytes(encode(Step([self._next(name) for name in list(self._left)])))
                time.sleep(STEP_SECONDS)

    def _messages(self) -> Iterable[ToEngine]:
        patience = 0.0 if self._left else HEARTBEAT_SECONDS
        while self._connection.poll(patience):
            patience = 0.0
            yield decode_to_engine(self._connection.recv_bytes())

    def _take(self, messages: Iterable[ToEngine]) -> None:
        for message in messages:
            match message:
                case Generate(request_id):
                    self._left[request_id] = message.sampling.max_tokens
                case Cancel(request_id):
                    self._left.pop(request_id, None)
                case Stop():
                    self._stopped = True
                    return

    def _next(self, name: str) -> Tokens:
        self._made += 1
        self._left[name] -= 1
        token = TOKEN_IDS[self._made % len(TOKEN_IDS)]
        if self._left[name]:
            return Tokens(name, [token])
        del self._left[name]
        return Tokens(name, [token], "length")

    def _heartbeat_if_due(self) -> None:
        if time.monotonic() - self._heard >= HEARTBEAT_SECONDS:
            self._heard = time.monotonic()
            self._connection.send_bytes(encode(Heartbeat(len(self._left), 0, 0, 1, 0)))


def stand_in(_: EngineConfig, connection: Connection, *__: object) -> None:
    """Run in place of the engine's process."""
    StandIn(connection).run()


if __name__ == "__main__":
    setattr(engine_process, "_child", stand_in)  # noqa: B010  (private on purpose: nothing but this takes its place)
    config = options.parse()
    logs.configure(config.log_level)
    os._exit(server.run(config))
