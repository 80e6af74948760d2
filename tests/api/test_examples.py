"""The API server admits every example."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.api.client import Api

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_admitted(api: Api, namespace: str, path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    for document in documents:
        assert api.create(document, namespace)["metadata"]["uid"]


def test_the_smallest_job_of_the_readme_is_admitted(api: Api, namespace: str) -> None:
    blocks = (ROOT / "README.md").read_text().split("```yaml\n")[1:]
    jobs = [yaml.safe_load(block.split("```")[0]) for block in blocks]
    assert [job["kind"] for job in jobs] == ["FineTuneJob"]
    assert api.create(jobs[0], namespace)["metadata"]["uid"]
