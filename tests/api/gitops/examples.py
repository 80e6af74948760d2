"""The trees of examples/gitops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.api.client import Manifest

ROOT = Path(__file__).resolve().parents[3]
GITOPS = ROOT / "examples" / "gitops"
JOBS = sorted((ROOT / "examples").glob("*.yaml"))


def read_documents(path: Path) -> list[Manifest]:
    """The objects of a file."""
    found: list[Any] = list(yaml.safe_load_all(path.read_text()))
    return found


def find_document(path: Path, name: str) -> Manifest:
    """The object of a file with this name."""
    (found,) = (each for each in read_documents(path) if each["metadata"]["name"] == name)
    return found
