"""`python -m multimodel_server`: see `--help`."""

import logging
import os
import sys


def main() -> None:
    """Serve the model of the command line; never returns."""
    # Imported here because the engine's process imports this module again, and needs nothing of it.
    from multimodel_server import logs, options

    config = options.parse()
    logs.configure(config.log_level)

    from multimodel_server import server

    status = server.run(config)
    # Threads that still render a template or wait for the network must not hold up the exit.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
