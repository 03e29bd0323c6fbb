"""The operator's command line, with an environment variable for each option."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

ImagePullPolicy = Literal["Always", "IfNotPresent", "Never"]
ENVIRONMENT_PREFIX = "MULTIMODEL_OPERATOR_"

EXAMPLES = """\
examples:
  python -m multimodel_operator                       every namespace, with the current kubeconfig
  python -m multimodel_operator --namespace chat      one namespace only
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
class Settings:
    """How this operator runs."""

    namespace: str | None
    images: Images
    resync_seconds: float = 30.0
    workers: int = 8
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

    def option(name: str, default: str, description: str, **more: object) -> None:
        preset = environment.get(ENVIRONMENT_PREFIX + name.upper().replace("-", "_"), default)
        parser.add_argument(f"--{name}", default=preset, help=f"{description} (default: {default or 'all'})", **more)  # type: ignore[arg-type]

    option("namespace", "", "the only namespace to look at")
    option("router-image", "multimodel/router:latest", "image of the router")
    option("modelserver-image", "multimodel/modelserver:latest", "image of the model server")
    option("image-pull-policy", "IfNotPresent", "when pods pull images", choices=get_args(ImagePullPolicy))
    option("resync-seconds", "30", "seconds between two looks at everything", type=_resync_seconds)
    option("workers", "8", "MultiModels reconciled at once", type=_positive)
    option("health-host", "127.0.0.1", "address that answers health probes")
    option("health-port", "8081", "port that answers health probes; 0 takes a free one", type=int)
    option("log-level", "INFO", "least severe messages logged", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    given = parser.parse_args(arguments)
    return Settings(
        namespace=given.namespace or None,
        images=Images(given.router_image, given.modelserver_image, given.image_pull_policy),
        resync_seconds=given.resync_seconds,
        workers=given.workers,
        health_host=given.health_host,
        health_port=given.health_port,
        log_level=given.log_level,
    )


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
