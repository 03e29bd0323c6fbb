"""What one client may cost: sizes and patience."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    head_bytes: int = 64 * 1024
    headers: int = 128
    body_bytes: int = 50 * 1024 * 1024
    head_seconds: float = 10.0
    """From the first byte of a request, or from the connection, to the end of the head."""
    body_idle_seconds: float = 30.0
    """Between two pieces of a body."""
    body_seconds: float = 600.0
    """For the whole body."""
    idle_seconds: float = 75.0
    """Between two requests of a connection."""
    stall_seconds: float = 60.0
    """For a client that does not read what it asked for."""
    linger_seconds: float = 2.0
    """For a refused client to stop sending, so that it gets to read why."""
    pipelined: int = 16
    """Requests that may wait behind the one being answered."""
    pipelined_bytes: int = 2**20
    """Bytes of their bodies at which no more of them are read."""
