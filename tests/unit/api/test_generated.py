"""The generated files are up to date, and the schemas follow the conventions of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api import crd

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = {
    "crds": crd.render_crds(),
    "charts/finetune-operator-crds/templates": crd.render_crds(crd.KEEP),
}
REMEDY = "the models have changed: run `make crds` and commit what it writes"


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_crds_are_up_to_date(folder: str) -> None:
    found = {path.name: path.read_text() for path in (ROOT / folder).glob("*.yaml")}
    assert found.keys() == FOLDERS[folder].keys(), REMEDY
    stale = [name for name, text in FOLDERS[folder].items() if found[name] != text]
    assert not stale, REMEDY


@pytest.mark.parametrize("name", crd.render_pages())
def test_a_page_is_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == crd.render_pages()[name], REMEDY


def test_generation_gives_equal_bytes_and_deletes_other_files(tmp_path: Path) -> None:
    kinds, chart, docs = tmp_path / "kinds", tmp_path / "chart", tmp_path / "docs"
    kinds.mkdir()
    (kinds / "finetune.dev_gone.yaml").write_text("a kind that was removed")
    crd.main([f"--crds={kinds}", f"--chart={chart}", f"--docs={docs}"])
    assert {p.name: p.read_text() for p in kinds.iterdir()} == crd.render_crds()
    assert {p.name: p.read_text() for p in chart.iterdir()} == crd.render_crds(crd.KEEP)
    assert {p.name: p.read_text() for p in docs.iterdir()} == crd.render_pages()


@pytest.mark.parametrize("kind", crd.KINDS, ids=lambda kind: kind.name)
def test_a_crd_is_small_enough_for_every_tool(kind: crd.Kind) -> None:
    # kubectl apply copies an object into an annotation, which may have 256 KiB.
    assert len(crd.to_yaml(crd.build_crd(kind))) < 200_000


@pytest.mark.parametrize("text", ["y", "n", "Y", "N", "on", "no", "1e3", "12", "null", "~"])
def test_a_string_that_other_parsers_read_as_another_type_is_quoted(text: str) -> None:
    written = crd.to_yaml({text: text})
    assert f"'{text}': '{text}'" in written
    assert yaml.safe_load(written) == {text: text}


def test_a_crd_contains_no_helm_template() -> None:
    assert not [name for name, text in crd.render_crds().items() if "{{" in text]


@pytest.mark.parametrize("name", FOLDERS["crds"])
def test_no_item_of_a_list_has_a_default(name: str) -> None:
    """Argo CD would find that the list in the cluster differs from the one in git."""

    def look(schema: Any, in_list: bool) -> Iterator[str]:
        if isinstance(schema, dict):
            for key, value in schema.items():
                if key == "default" and in_list and not isinstance(value, dict):
                    yield f"a default {value!r}"
                yield from look(value, in_list or key == "items")
        elif isinstance(schema, list):
            for each in schema:
                yield from look(each, in_list)

    (version,) = yaml.safe_load(FOLDERS["crds"][name])["spec"]["versions"]
    assert list(look(version["schema"], False)) == []


def fields(schema: Any) -> Iterator[tuple[str, Any]]:
    """Name and schema of every field below a schema."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {}).items()
        for each in schema.values():
            yield from fields(each)


@pytest.mark.parametrize("kind", crd.KINDS, ids=lambda kind: kind.name)
def test_every_list_has_a_type_and_only_atomic_ones_a_default(kind: crd.Kind) -> None:
    lists = [each for _, each in fields(crd.object_schema(kind)) if each.get("type") == "array"]
    assert lists
    types = [(each["x-kubernetes-list-type"], bool(each.get("default"))) for each in lists]
    assert not {("set", True), ("map", True)} & set(types)


STATUSES = [kind for kind in crd.KINDS if kind.status]


@pytest.mark.parametrize("kind", STATUSES, ids=lambda kind: kind.name)
def test_every_time_of_a_status_has_the_format_of_a_time(kind: crd.Kind) -> None:
    status = crd.object_schema(kind)["properties"]["status"]
    times = [(name, each) for name, each in fields(status) if re.search("(At|Since|Time)$", name)]
    assert times
    assert [name for name, each in times if each.get("format") != "date-time"] == []


@pytest.mark.parametrize("kind", STATUSES, ids=lambda kind: kind.name)
def test_a_condition_has_the_schema_of_kubernetes(kind: crd.Kind) -> None:
    """As controller-gen writes metav1.Condition."""
    status = crd.object_schema(kind)["properties"]["status"]
    schema = status["properties"]["conditions"]["items"]
    dropped = ("description", "default")
    properties = {
        name: {key: value for key, value in field.items() if key not in dropped}
        for name, field in schema["properties"].items()
    }
    assert sorted(schema["required"]) == [
        "lastTransitionTime",
        "message",
        "reason",
        "status",
        "type",
    ]
    assert properties == {
        "lastTransitionTime": {"type": "string", "format": "date-time"},
        "message": {"type": "string", "maxLength": 32768},
        "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
        "reason": {
            "type": "string",
            "minLength": 1,
            "maxLength": 1024,
            "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        },
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        "type": {
            "type": "string",
            "maxLength": 316,
            "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
            r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
        },
    }
