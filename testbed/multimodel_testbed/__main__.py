"""`python -m multimodel_testbed`: build the binaries, start and stop a node that stays."""

import argparse
import sys
from pathlib import Path

from multimodel_testbed import binaries, containerd, errors, folders, foreign_kinds, images, keeper
from multimodel_testbed.control_plane import run_kubectl
from multimodel_testbed.leftovers import RUN
from multimodel_testbed.progress import say

EXAMPLES = """\
examples:
  python -m multimodel_testbed build --control-plane-only   etcd, API server, controller manager, kubectl
  python -m multimodel_testbed build                        all binaries; the first time takes minutes
  sudo -E python -m multimodel_testbed up                   a whole node that stays
  sudo -E python -m multimodel_testbed load                 build the Dockerfile's images and import them into it
  sudo -E python -m multimodel_testbed status
  sudo -E python -m multimodel_testbed down                 stop it; nothing of it stays

environment:
  KUBEBUILDER_ASSETS   a folder of binaries to use before all others
  MULTIMODEL_CACHE     where binaries, images and downloads are kept (~/.cache/multimodel)
"""


def main() -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args()
    try:
        arguments.run(arguments)
    except errors.TestbedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m multimodel_testbed",
        description="A real Kubernetes cluster on this machine, without Docker, for development and tests.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    build = commands.add_parser("build", help="build the binaries that are missing, into the cache")
    build.add_argument("--control-plane-only", action="store_true", help="only those that run without root")
    build.set_defaults(run=_build)
    commands.add_parser("up", help="start a node that stays (root)").set_defaults(run=_up)
    load = commands.add_parser("load", help="build the images and import them into the running node (root)")
    load.add_argument("--source", type=Path, default=Path.cwd(), help="the folder of the Dockerfile (default: here)")
    load.add_argument("targets", nargs="*", metavar="target", help=f"default: {' '.join(images.TARGETS)}")
    load.set_defaults(run=_load)
    commands.add_parser("status", help="say whether a node runs, and what runs on it").set_defaults(run=_status)
    commands.add_parser("down", help="stop the node and clear everything away (root)").set_defaults(run=_down)
    commands.add_parser("keep", help="run a node until interrupted, in the foreground (root)").set_defaults(run=_keep)
    return parser


def _build(arguments: argparse.Namespace) -> None:
    programs = binaries.CONTROL_PLANE_PROGRAMS if arguments.control_plane_only else binaries.ALL_PROGRAMS
    for name, path in binaries.ensure_all(programs).items():
        print(f"{name:26}{path}")
    if not arguments.control_plane_only:
        for path in foreign_kinds.ensure():
            print(f"{'CRD':26}{path}")


def _up(_: argparse.Namespace) -> None:
    kubeconfig = keeper.up()
    kubectl = binaries.ensure("kubectl")
    tags = ",".join(f"images.{target}.tag={images.TAG}" for target in images.TARGETS)
    print(f"""\
A Kubernetes node is running. Its kubeconfig: {kubeconfig}

  export KUBECONFIG={kubeconfig}
  export PATH={kubectl.parent}:{binaries.ensure("helm").parent}:$PATH
  kubectl get nodes
  python -m multimodel_testbed load     # build and import the images
  helm install multimodel charts/multimodel --namespace multimodel --create-namespace --set {tags}
  python -m multimodel_testbed down     # stop it""")


def _load(arguments: argparse.Namespace) -> None:
    _require_running()
    running = containerd.Containerd(binaries.ensure("ctr"), RUN / "containerd.sock")
    for target in arguments.targets or images.TARGETS:
        name = images.name_of(target)
        images.build(arguments.source, target, name)
        images.load(running, name)
        print(name)


def _status(_: argparse.Namespace) -> None:
    _require_running()
    print(f"A node is running. Its kubeconfig: {keeper.KUBECONFIG}\n")
    print(run_kubectl(keeper.KUBECONFIG, "get", "nodes"))
    print(run_kubectl(keeper.KUBECONFIG, "get", "pods", "--all-namespaces"))


def _down(_: argparse.Namespace) -> None:
    keeper.down()
    say(f"No node is running. Binaries and images are kept in {folders.cache_root()}.")


def _keep(_: argparse.Namespace) -> None:
    keeper.keep()


def _require_running() -> None:
    if not keeper.is_running():
        raise errors.TestbedError("no node is running; start one: python -m multimodel_testbed up")


if __name__ == "__main__":
    sys.exit(main())
