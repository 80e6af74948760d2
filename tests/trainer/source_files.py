"""Helpers of tests that open an address: its rows, its files, or its failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import s3fs
from finetune_trainer.runtime.errors import StageError, UserError
from finetune_trainer.sources import Address, Credentials, Source, open_source

from hack.testservers.s3 import S3Server

NOWHERE = Path("/nonexistent")
ROWS = b'{"prompt": "a", "completion": "b"}\n'


def ignore_progress(message: str, done: int, total: int | None) -> None:
    """Ignore the progress."""


def failure(
    address: Address, volumes: Path = NOWHERE, kind: type[StageError] = UserError
) -> StageError:
    """The error of an address that cannot be opened."""
    with pytest.raises(kind) as caught:
        open_source(address, volumes)
    return caught.value


def paths(source: Source) -> list[str]:
    """The paths of the files of a source."""
    return [file.path for file in source.files]


def s3_client(server: S3Server, **options: Any) -> Any:
    """A client of the test server with its key, for uploads."""
    return s3fs.S3FileSystem(
        key=server.access_key,
        secret=server.secret_key,
        endpoint_url=server.url,
        skip_instance_cache=True,
        **options,
    )


def on_s3(
    server: S3Server,
    uri: str,
    kind: Literal["model", "dataset"] = "dataset",
    version: str | None = None,
    **secrets: str,
) -> Address:
    """An address on the test server, with its key unless `secrets` has another."""
    values = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        **secrets,
    }
    return Address(kind, uri, None, Credentials(values), "dataset.train[0]", version)
