"""The operator's command line, with an environment variable for each option."""

import argparse
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

ImagePullPolicy = Literal["Always", "IfNotPresent", "Never"]
ENVIRONMENT_PREFIX = "MULTIMODEL_OPERATOR_"

OWN_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where a pod finds the namespace that it runs in."""

EXAMPLES = """\
examples:
  python -m multimodel_operator                       every namespace, with the current kubeconfig
  python -m multimodel_operator --namespace chat      one namespace only
  python -m multimodel_operator --leader-elect --lease=multimodel/operator --identity=first
                                                      one of several operators, of which one writes at a time
  python -m multimodel_operator --router-image multimodel/router:dev --modelserver-image multimodel/modelserver:dev

Each option can be set in the environment too: MULTIMODEL_OPERATOR_NAMESPACE, MULTIMODEL_OPERATOR_ROUTER_IMAGE, ...
"""


@dataclass(frozen=True)
class Images:
    """The images that pods run, and when the kubelet pulls them."""

    router: str
    modelserver: str
    pull_policy: ImagePullPolicy = "IfNotPresent"


@dataclass(frozen=True)
class Election:
    """How one of several operators is chosen: by who holds the Lease `name` of `namespace`."""

    namespace: str
    name: str
    identity: str
    seconds: int


@dataclass(frozen=True)
class Settings:
    """How this operator runs."""

    namespace: str | None
    images: Images
    election: Election | None = None
    require_api_keys: bool = False
    metrics_namespaces: tuple[str, ...] = ()
    hub_endpoint: str = ""
    resync_seconds: float = 50.0
    workers: int = 8
    requests_per_second: int = 300
    requests_burst: int = 600
    health_host: str = "127.0.0.1"
    health_port: int = 8081
    log_level: str = "INFO"


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings; exits with a usage message where an option is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m multimodel_operator",
        description="Turns MultiModel resources into Deployments, Services and a router, and tells how they are.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def option(name: str, default: str, description: str, none: str = "all", **more: object) -> None:
        preset = environment.get(ENVIRONMENT_PREFIX + name.upper().replace("-", "_"), default)
        parser.add_argument(f"--{name}", default=preset, help=f"{description} (default: {default or none})", **more)  # type: ignore[arg-type]

    def switch(name: str, description: str) -> None:
        option(name, "false", description, type=_switch, nargs="?", const=True, metavar="true|false")

    option("namespace", "", "the only namespace to look at")
    option("router-image", "multimodel/router:latest", "image of the router")
    option("modelserver-image", "multimodel/modelserver:latest", "image of the model server")
    option("image-pull-policy", "IfNotPresent", "when pods pull images", choices=get_args(ImagePullPolicy))
    switch("require-api-keys", "run no router for a MultiModel without spec.router.apiKeys")
    readers = "namespaces, with commas between, whose pods may read the model servers' metrics"
    option("metrics-namespaces", "", readers, none="none")
    option(
        "hub-endpoint", "", "Hub that is asked for models' sizes, to warn of those that do not fit", none="nobody is"
    )
    switch("leader-elect", "write only while holding a Lease, for which several operators compete")
    option("lease", f"{_own_namespace()}/multimodel-operator", "NAMESPACE/NAME of the Lease", type=_lease)
    option("lease-seconds", "15", "time without renewal after which another takes the Lease", type=_positive)
    option("identity", f"{socket.gethostname()}-{os.getpid()}", "name of this operator on the Lease")
    option("resync-seconds", "50", "seconds between two looks at everything", type=_resync_seconds)
    option("workers", "8", "MultiModels reconciled at once", type=_positive)
    option("requests-per-second", "300", "requests to the API server, watches and the Lease apart", type=_positive)
    option("requests-burst", "600", "requests that may be made at once after a rest", type=_positive)
    option("health-host", "127.0.0.1", "address that answers health probes")
    option("health-port", "8081", "port that answers health probes; 0 takes a free one", type=int)
    option("log-level", "INFO", "least severe messages logged", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    given = parser.parse_args(arguments)
    return Settings(
        namespace=given.namespace or None,
        images=Images(given.router_image, given.modelserver_image, given.image_pull_policy),
        election=_election(given) if given.leader_elect else None,
        require_api_keys=given.require_api_keys,
        metrics_namespaces=tuple(filter(None, given.metrics_namespaces.split(","))),
        resync_seconds=given.resync_seconds,
        workers=given.workers,
        hub_endpoint=given.hub_endpoint,
        requests_per_second=given.requests_per_second,
        requests_burst=given.requests_burst,
        health_host=given.health_host,
        health_port=given.health_port,
        log_level=given.log_level,
    )


def _switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text}: true or false is needed")
    return text == "true"


def _election(given: argparse.Namespace) -> Election:
    namespace, name = given.lease
    return Election(namespace, name, given.identity, given.lease_seconds)


def _lease(text: str) -> tuple[str, str]:
    namespace, _, name = text.partition("/")
    if not (namespace and name):
        raise argparse.ArgumentTypeError(f"{text}: a namespace and a name are needed, as in multimodel/operator")
    return namespace, name


def _own_namespace() -> str:
    return OWN_NAMESPACE_FILE.read_text().strip() if OWN_NAMESPACE_FILE.exists() else "default"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1 is needed")
    return value


def _resync_seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 60:
        raise argparse.ArgumentTypeError(f"{text}: a number above 0 and at most 60 is needed")
    return value
