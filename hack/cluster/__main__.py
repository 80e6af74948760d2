"""The command line of the local cluster: `python3 -m hack.cluster ...` from the checkout."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from hack.cluster import binaries, prerequisites, volumes
from hack.cluster.engine import choose, possible
from hack.cluster.errors import ClusterError
from hack.cluster.images import Image
from hack.cluster.paths import KUBECONFIG, STATE
from hack.cluster.process import warn

GRACE = "FINETUNE_CLUSTER_GRACE"


def parser() -> argparse.ArgumentParser:
    """Every command and its arguments."""
    top = argparse.ArgumentParser(prog="python3 -m hack.cluster", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help: str, *arguments: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        for argument in arguments:
            command.add_argument(argument)
        return command

    add("prerequisites", "install what the cluster needs from the distribution")
    add("binaries", "build etcd, Kubernetes, CoreDNS and helm; print their folder")
    up = add("up", "bring the cluster up")
    seconds = "seconds without a heartbeat after which a node is NotReady"
    up.add_argument("--grace", type=float, default=os.environ.get(GRACE, "20"), help=seconds)
    up.add_argument(
        "--network-policies", action="store_true", help="enforce NetworkPolicies, with kube-router"
    )
    add("down", "take the cluster away, also after a crash")
    add("status", "show machines, daemons and their memory")
    add("kubeconfig", "print the path of the kubeconfig")
    add("poweroff", "a node loses its power", "node")
    add("poweron", "a node boots again", "node")
    add("freeze", "a node hangs", "node")
    add("thaw", "let a frozen node continue", "node")
    link = add("link", "cut or restore a node's network", "node")
    link.add_argument("state", choices=["up", "down"])
    add("stop", "kill a component of a machine (cp, node1, node2)", "machine", "component")
    add("start", "start a component of a machine", "machine", "component")
    shell = add("sh", "run a command on a machine", "machine")
    shell.add_argument("words", nargs=argparse.REMAINDER, metavar="CMD")
    load = add("load", "import OCI archives into the nodes and their cache")
    load.add_argument("archives", nargs="+", type=Path)
    add("volumes", "empty the released shared volumes and offer them again")
    return top


def perform(arguments: argparse.Namespace) -> None:
    """Run the command line."""
    match arguments.command:
        case "binaries":
            print(binaries.ensure())
            return
        case "prerequisites":
            prerequisites.install()
            return
        case "down" if not STATE.exists() and not possible():
            return
        case "kubeconfig":
            if not KUBECONFIG.exists():
                raise ClusterError("no cluster is up: `python3 -m hack.cluster up`")
            print(KUBECONFIG)
            return
    engine = choose()
    match arguments.command:
        case "up":
            engine.up(arguments.grace, arguments.network_policies)
        case "down":
            engine.down()
        case "status":
            engine.status()
        case "poweroff":
            engine.power_off(arguments.node)
        case "poweron":
            engine.power_on(arguments.node)
        case "freeze":
            engine.freeze(arguments.node)
        case "thaw":
            engine.thaw(arguments.node)
        case "link":
            engine.link(arguments.node, arguments.state == "up")
        case "stop":
            engine.stop(arguments.machine, arguments.component)
        case "start":
            engine.start(arguments.machine, arguments.component)
        case "sh":
            engine.shell(arguments.machine, arguments.words)
        case "load":
            engine.load([Image.from_archive(p) for p in arguments.archives])
        case "volumes":
            print(f"{volumes.offer(engine.volumes_folder())} shared volumes are available")


def main(words: list[str] | None = None) -> int:
    """Run the command line; errors are one line on stderr."""
    try:
        perform(parser().parse_args(words))
    except ClusterError as error:
        warn(f"hack.cluster: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        warn("hack.cluster: interrupted; `python3 -m hack.cluster down` cleans up")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
