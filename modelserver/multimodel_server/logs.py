"""How both processes of a model server log: to stderr, one line a record."""

import logging


def configure(level: str) -> None:
    """Log records of `level` and above to stderr."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(message)s", force=True)
    for chatty in ("httpx", "httpx2", "httpcore", "httpcore2", "asyncio", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
