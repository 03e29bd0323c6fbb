"""The router's settings, parsed once from the command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_PORT = 1234
MAX_BODY_BYTES = 50 * 1024 * 1024

_EXAMPLES = """examples:
  # every model of a manifest as processes of this machine, on http://127.0.0.1:1234
  python -m multimodel_router --fleet processes --manifest examples/quickstart.yaml

  # in a pod, or with a kubeconfig from anywhere: the models of the MultiModel `chat` in the namespace `team-a`
  python -m multimodel_router --fleet kubernetes --multimodel chat --namespace team-a --host 0.0.0.0

The Kubernetes fleet takes its access from KUBECONFIG if it is set, in a pod from the service account.
"""


@dataclass(frozen=True, slots=True)
class ProcessesSettings:
    """Models run as processes of this machine."""

    manifest: Path


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """Models run as pods, made by the operator."""

    multimodel: str
    namespace: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set; times in seconds."""

    fleet: ProcessesSettings | KubernetesSettings
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    wait_seconds: float = 600.0
    drain_seconds: float = 30.0
    log_level: str = "info"


def parse(arguments: Sequence[str]) -> Settings:
    """Return the settings of a command line; ends the program with status 2 and a clear line when it is wrong."""
    parser = _parser()
    given = parser.parse_args(arguments)
    return Settings(
        fleet=_fleet(parser, given),
        host=given.host,
        port=given.port,
        wait_seconds=given.wait_seconds,
        drain_seconds=given.drain_seconds,
        log_level=given.log_level,
    )


def _fleet(parser: argparse.ArgumentParser, given: argparse.Namespace) -> ProcessesSettings | KubernetesSettings:
    if given.fleet == "processes":
        if not given.manifest:
            parser.error("--fleet processes needs --manifest FILE")
        return ProcessesSettings(given.manifest)
    if not (given.multimodel and given.namespace):
        parser.error("--fleet kubernetes needs --multimodel NAME and --namespace NAMESPACE")
    return KubernetesSettings(given.multimodel, given.namespace)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m multimodel_router",
        description="One OpenAI endpoint for all models of a MultiModel.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fleet", required=True, choices=("processes", "kubernetes"), help="where the models run")
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="processes: the MultiModel's YAML")
    parser.add_argument("--multimodel", metavar="NAME", help="kubernetes: the MultiModel's name")
    parser.add_argument("--namespace", help="kubernetes: the MultiModel's namespace")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=port_number, default=DEFAULT_PORT, help="port; 0 takes a free one (default: 1234)"
    )
    parser.add_argument(
        "--wait-seconds",
        type=seconds,
        default=600.0,
        metavar="S",
        help="how long a request or a reload waits for a model to load (default: 600)",
    )
    parser.add_argument(
        "--drain-seconds",
        type=seconds,
        default=30.0,
        metavar="S",
        help="how long running requests may take after SIGTERM (default: 30)",
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser


def port_number(text: str) -> int:
    """Return the port that an argument names."""
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is no port; use 0 to 65535")
    return port


def seconds(text: str) -> float:
    """Return the length of time that an argument names."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no positive number of seconds")
    return value
