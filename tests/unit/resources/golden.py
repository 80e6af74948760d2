"""Manifests as golden files for review; `UPDATE_GOLDEN=1 pytest` rewrites them."""

import os
from pathlib import Path

import yaml
from finetune_operator.decision import Manifest


class _Readable(yaml.SafeDumper):
    """Writes multi-line texts as block scalars."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Readable.add_representer(str, _represent_text)

FOLDER = Path(__file__).parents[2] / "golden" / "jobs"


def assert_golden(name: str, *manifests: Manifest) -> None:
    """Compare the manifests with tests/golden/jobs/<name>.yaml, byte for byte."""
    text = yaml.dump_all(manifests, Dumper=_Readable, sort_keys=False, width=100)
    path = FOLDER / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.write_text(text)
    assert path.exists(), f"{path.name} is missing: run UPDATE_GOLDEN=1 pytest tests/unit/resources"
    assert text == path.read_text()
