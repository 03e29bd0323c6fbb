"""`python -m multimodel_router`: the router as a process."""

import gc
import logging
import sys
from pathlib import Path

import uvloop
import yaml
from pydantic import ValidationError

from multimodel_api.manifest import MultiModel
from multimodel_router import settings as command_line
from multimodel_router.fleet import Fleet, FleetUnavailableError
from multimodel_router.fleet.processes import ProcessFleet
from multimodel_router.router import Router
from multimodel_router.server import Server
from multimodel_router.settings import ProcessesSettings, Settings
from multimodel_router.upstream import Upstream
from multimodel_router.workers import run_workers


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT: then finish running requests, and end the fleet."""
    upstream = Upstream()
    router = Router(await make_fleet(settings, upstream), upstream, settings)
    server = Server(router, settings)
    with server.signals():
        await server.serve()


async def make_fleet(settings: Settings, upstream: Upstream) -> Fleet:
    """Return the fleet that the settings name; raises FleetUnavailableError without access to a cluster."""
    if isinstance(settings.fleet, ProcessesSettings):
        return ProcessFleet(read_manifest(settings.fleet.manifest).spec, upstream)
    from multimodel_router.fleet.kubernetes import KubernetesFleet, cluster_access  # here: it takes a second to import

    return KubernetesFleet(settings.fleet.multimodel, settings.fleet.namespace, upstream, await cluster_access())


def read_manifest(path: Path) -> MultiModel:
    """Return the MultiModel in a YAML file; ends the program with status 2 and a clear line when it holds none."""
    try:
        return MultiModel.model_validate(yaml.safe_load(path.read_text()))
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except yaml.YAMLError as error:
        problem = f"is not YAML: {error}"
    except ValidationError as error:
        problem = f"is not a MultiModel: {error}"
    raise _bad_start(f"{path} {problem}")


def _bad_start(problem: str) -> SystemExit:
    sys.stderr.write(f"multimodel_router: {problem}\n")
    return SystemExit(2)


def run(settings: Settings) -> None:
    """Run one router process; ends the program with status 2 and a clear line when it cannot begin."""
    _log(settings)
    _collect_seldom()
    try:
        uvloop.run(serve(settings))
    except FleetUnavailableError as error:
        raise _bad_start(str(error)) from error
    except OSError as error:
        raise _bad_start(f"cannot serve on {settings.host}:{settings.port}: {error}") from error


def _log(settings: Settings) -> None:
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def _collect_seldom() -> None:
    """Look for garbage in cycles seldom: a look at the objects of thousands of streams stops them all for a while."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def main() -> None:
    """Run the router of the command line."""
    settings = command_line.parse(sys.argv[1:])
    if settings.workers > 1:
        _log(settings)
        run_workers(settings, run)
    else:
        run(settings)


if __name__ == "__main__":
    main()
