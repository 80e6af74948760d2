"""The S3 server of the tests: the library behind `rclone serve s3`, with signatures checked.

It keeps objects in memory and knows one key, so that a wrong key is refused as AWS would. The
program is built once (a few seconds with Go) into the project's cache.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.binaries import Program, built

SOURCE = Program("s3", Path(__file__).resolve().parent / "gomod/s3", ".")


@dataclass(frozen=True)
class S3Server:
    """A running server and the one key that it accepts."""

    url: str
    access_key: str
    secret_key: str


def program() -> Path:
    """The path of the server's program, built if need be."""
    return built(SOURCE, "testservers")


@contextlib.contextmanager
def s3_server(
    access_key: str = "test-key",
    secret_key: str = "test-secret",
    *,
    address: str = "127.0.0.1",
    within: Sequence[str] = (),
) -> Iterator[S3Server]:
    """Run the server on a free port of `address`; it ends with the block.

    `within` is what a command starts with that runs elsewhere, as in another network.
    """
    keys = {"S3_ACCESS_KEY_ID": access_key, "S3_SECRET_ACCESS_KEY": secret_key}
    with subprocess.Popen(
        [*within, program()],
        env={**os.environ, **keys, "S3_ADDRESS": address},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield S3Server(process.stdout.readline().strip(), access_key, secret_key)
        finally:
            process.kill()
