"""Build what the local cluster runs: libraries, images, and the product's images as a check."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from hack.cluster.errors import ClusterError
from hack.images import catalog
from hack.images.cache import say
from hack.images.load import load
from hack.images.locks import lock
from hack.images.product import PRODUCTS, checked
from hack.images.venv import ml_python


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hack.images", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("venv", help="build the CPU libraries and print their interpreter's path")
    _with_names(commands.add_parser("build", help="build the images' layers into the cache"))
    _with_names(commands.add_parser("load", help="build, and bring the images to the cluster"))
    product = commands.add_parser("product", help="build and start the images that users run")
    product.add_argument("image", nargs="?", default="all", choices=[*PRODUCTS, "all"])
    commands.add_parser("lock", help="resolve the libraries of the local images again")
    chosen = parser.parse_args(arguments)
    try:
        _run(chosen.command, getattr(chosen, "image", "all"))
    except (ClusterError, subprocess.CalledProcessError) as error:
        say(f"hack.images {chosen.command}: {error}")
        return 1
    return 0


def _run(command: str, image: str) -> None:
    if command == "venv":
        print(ml_python())
    elif command == "build":
        for name in _names(image):
            built = catalog.image(name)
            say(f"{built.reference} {built.digest}")
    elif command == "load":
        load(_names(image))
    elif command == "product":
        names = PRODUCTS if image == "all" else (image,)
        print(json.dumps({name: checked(PRODUCTS[name]) for name in names}, indent=2))
    else:
        lock()


def _with_names(command: argparse.ArgumentParser) -> None:
    choices = [*catalog.NAMES, "all"]
    command.add_argument("image", nargs="?", default="all", choices=choices)


def _names(chosen: str) -> tuple[str, ...]:
    return catalog.NAMES if chosen == "all" else (chosen,)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
