"""The router's settings, parsed once from the command line."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

DEFAULT_PORT = 1234

_EXAMPLES = """examples:
  # every model of a manifest as processes of this machine, on http://127.0.0.1:1234
  python -m multimodel_router --fleet processes --manifest examples/quickstart.yaml

  # in a pod, or with a kubeconfig from anywhere: the models of the MultiModel `chat` in the namespace `team-a`
  python -m multimodel_router --fleet kubernetes --multimodel chat --namespace team-a --host 0.0.0.0

  # ask every caller for a key; `multimodel keys new` makes them
  python -m multimodel_router --fleet processes --manifest models.yaml --api-keys keys/

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
class Bounds:
    """How much may wait at once, in all and for each model; a body counts with its bytes."""

    requests: int = 4096
    requests_per_model: int = 1024
    bytes: int = 1024 * 2**20
    bytes_per_model: int = 512 * 2**20

    def exceeded(self, requests: int, size: int, requests_of_model: int, size_of_model: int) -> str | None:
        """Return what there would be too much of, None when all is within the bounds; pure."""
        checks = (
            (requests_of_model, self.requests_per_model, "requests wait for this model"),
            (requests, self.requests, "requests wait for a model"),
            (size_of_model, self.bytes_per_model, "bytes of requests wait for this model"),
            (size, self.bytes, "bytes of requests wait for a model"),
        )
        return next((f"{limit} {what} already" for value, limit, what in checks if value > limit), None)


class AbandonedLoads(StrEnum):
    """What becomes of a load that a request began when nobody waits for it any more."""

    FINISH = "finish"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class WaitingSettings(Bounds):
    """How requests wait for models to load, in each process; times in seconds."""

    seconds: float = 600.0
    abandoned_loads: AbandonedLoads = AbandonedLoads.FINISH


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """The certificate with its chain, and its key, as PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set; times in seconds."""

    fleet: ProcessesSettings | KubernetesSettings
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    workers: int = 1
    waiting: WaitingSettings = field(default_factory=WaitingSettings)
    balance: str = "least-load"
    resume: bool = True
    api_keys: Path | None = None
    cors_origins: tuple[str, ...] = ()
    tls: TlsSettings | None = None
    access_log: str = "off"
    lame_duck_seconds: float = 0.0
    drain_seconds: float = 30.0
    log_level: str = "info"


def parse(arguments: Sequence[str]) -> Settings:
    """Return the settings of a command line; ends the program with status 2 and a clear line when it is wrong."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.workers > 1 and (given.fleet == "processes" or given.port == 0):
        parser.error("--workers needs --fleet kubernetes, for one process owns local models, and a --port other than 0")
    return Settings(
        fleet=_fleet(parser, given),
        host=given.host,
        port=given.port,
        workers=given.workers,
        waiting=WaitingSettings(
            requests=given.max_waiting,
            requests_per_model=min(given.max_waiting_per_model, given.max_waiting),
            bytes=given.max_waiting_bytes,
            bytes_per_model=min(given.max_waiting_bytes_per_model, given.max_waiting_bytes),
            seconds=given.wait_seconds,
            abandoned_loads=AbandonedLoads(given.abandoned_loads),
        ),
        balance=given.balance,
        resume=given.resume == "on",
        api_keys=given.api_keys,
        cors_origins=tuple(given.cors_origin),
        tls=_tls(parser, given),
        access_log=given.access_log,
        lame_duck_seconds=given.lame_duck_seconds,
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


def _tls(parser: argparse.ArgumentParser, given: argparse.Namespace) -> TlsSettings | None:
    if bool(given.tls_certificate) != bool(given.tls_key):
        parser.error("--tls-certificate and --tls-key go together")
    return TlsSettings(given.tls_certificate, given.tls_key) if given.tls_certificate else None


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
    _add_listening(parser.add_argument_group("listening"))
    _add_access(parser.add_argument_group("access"))
    _add_waiting(parser.add_argument_group("waiting for models (bounds count for each process)"))
    _add_relaying(parser.add_argument_group("relaying"))
    _add_stopping(parser.add_argument_group("stopping"))
    return parser


def _add_listening(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    group.add_argument(
        "--port", type=port_number, default=DEFAULT_PORT, help="port; 0 takes a free one (default: 1234)"
    )
    group.add_argument(
        "--workers", type=at_least(1), default=1, metavar="N", help="kubernetes: processes that serve (default: 1)"
    )
    group.add_argument("--tls-certificate", type=Path, metavar="FILE", help="serve HTTPS with this PEM certificate")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="the certificate's PEM key")


def _add_access(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--api-keys", type=Path, metavar="FOLDER", help="ask callers for one of the keys in this folder")
    group.add_argument(
        "--cors-origin", action="append", default=[], metavar="O", help="let web pages of this origin call; * for all"
    )
    group.add_argument("--access-log", default="off", choices=("off", "text", "json"), help="a line for each request")
    group.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))


def _add_waiting(group: argparse._ArgumentGroup) -> None:
    defaults = WaitingSettings()
    seconds_help = "how long a request or a reload waits for a model to load (default: 600)"
    group.add_argument("--wait-seconds", type=seconds, default=defaults.seconds, metavar="S", help=seconds_help)
    for option, default, what in (
        ("--max-waiting", defaults.requests, "most requests that wait; more are answered with 429"),
        ("--max-waiting-per-model", defaults.requests_per_model, "most requests that wait for one model"),
        ("--max-waiting-bytes", defaults.bytes, "most bytes of waiting requests"),
        ("--max-waiting-bytes-per-model", defaults.bytes_per_model, "most bytes of requests waiting for one model"),
    ):
        group.add_argument(
            option, type=at_least(0), default=default, metavar="N", help=f"{what} (default: %(default)s)"
        )
    group.add_argument(
        "--abandoned-loads",
        default=defaults.abandoned_loads,
        choices=[str(choice) for choice in AbandonedLoads],
        help="what becomes of a load when the last request that waited for it has gone (default: finish)",
    )


def _add_relaying(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--balance",
        default="least-load",
        choices=("least-load", "prefix-hash"),
        help="which of several replicas takes a request, where the model does not say (default: least-load)",
    )
    group.add_argument(
        "--resume",
        default="on",
        choices=("on", "off"),
        help="go on with a stream at another replica when its model server dies (default: on)",
    )


def _add_stopping(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--lame-duck-seconds",
        type=seconds_or_none,
        default=0.0,
        metavar="S",
        help="how long requests are still accepted after SIGTERM, though no longer ready (default: 0)",
    )
    group.add_argument(
        "--drain-seconds",
        type=seconds,
        default=30.0,
        metavar="S",
        help="how long running requests may take after that (default: 30)",
    )


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


def seconds_or_none(text: str) -> float:
    """Return the length of time that an argument names, which may be 0."""
    return 0.0 if float(text) == 0 else seconds(text)


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is not below `least`."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small; use {least} or more")
        return value

    return number
