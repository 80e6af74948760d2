"""Command line of the image builder; `python3 -m hack.images --help` lists what it does."""

from __future__ import annotations

import argparse
import sys

from hack.images.venv import ml_python


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hack.images", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("venv", help="build the CPU libraries and print their interpreter's path")
    chosen = parser.parse_args(arguments)
    if chosen.command == "venv":
        print(ml_python())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
