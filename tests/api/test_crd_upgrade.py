"""Objects of the first release under today's CRDs: all are served, complete and readable."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api import crd
from finetune_operator.controllers import build_controllers
from finetune_operator.decision import Key, Settings
from finetune_operator.engine.cache import Cache

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api, ApiError, Manifest, wait_established
from tests.api.conftest import CRDS, started

FIXTURES = Path(__file__).parent / "fixtures"
OBJECTS: list[Manifest] = list(yaml.safe_load_all((FIXTURES / "objects.yaml").read_text()))
NAMESPACED = [each for each in OBJECTS if each["kind"] != "AcceleratorProfile"]
MODELS = {kind.name: kind for kind in crd.KINDS}
SETTINGS = Settings(trainer_image="trainer:2", serving_image="vllm:2")


def named(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, dict[str, Manifest]]]:
    """An API server that stored objects under the old CRDs and now has today's CRDs."""
    with started(tmp_path_factory.mktemp("upgraded-plane")) as plane:
        api = Api(plane.kubeconfig)
        _apply(plane, api, FIXTURES / "crds")
        stored = {named(each): _store(api, each) for each in OBJECTS}
        _apply(plane, api, CRDS)
        yield api, stored


def _apply(plane: ControlPlane, api: Api, crds: Path) -> None:
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", crds)
    wait_established(api)


def _store(api: Api, manifest: Manifest) -> Manifest:
    metadata = {**manifest["metadata"], "namespace": "default"}
    made = api.create({**manifest, "metadata": metadata})
    if "status" not in manifest:
        return made
    name, patch = made["metadata"]["name"], {"status": manifest["status"]}
    return api.patch(manifest["kind"], "default", name, patch, "status")


def missing(old: Any, new: Any, where: str = "") -> list[str]:
    """Paths of the values that are missing or different now; new fields do not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [each for key in old for each in missing(old[key], new.get(key), f"{where}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            each
            for index, pair in enumerate(zip(old, new, strict=True))
            for each in missing(*pair, f"{where}[{index}]")
        ]
    return [] if old == new else [where]


@pytest.mark.parametrize("manifest", OBJECTS, ids=named)
def test_an_upgrade_keeps_every_stored_value(
    upgraded: tuple[Api, dict[str, Manifest]], manifest: Manifest
) -> None:
    api, stored = upgraded
    before = stored[named(manifest)]
    now = api.get(manifest["kind"], "default", manifest["metadata"]["name"])
    for part in ("spec", "status"):
        assert missing(before.get(part), now.get(part), part) == []


@pytest.mark.parametrize("manifest", OBJECTS, ids=named)
def test_the_models_read_every_stored_object(
    upgraded: tuple[Api, dict[str, Manifest]], manifest: Manifest
) -> None:
    api, _ = upgraded
    now = api.get(manifest["kind"], "default", manifest["metadata"]["name"])
    kind = MODELS[manifest["kind"]]
    kind.spec.model_validate(now["spec"])
    if kind.status is not None and "status" in now:
        read = kind.status.model_validate(now["status"]).to_wire()
        assert missing(now["status"], read, "status") == []


@pytest.mark.parametrize("manifest", NAMESPACED, ids=named)
def test_a_stored_object_can_still_be_edited(
    upgraded: tuple[Api, dict[str, Manifest]], manifest: Manifest
) -> None:
    api, _ = upgraded
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    api.patch(kind, "default", name, {"metadata": {"labels": {"team": "a"}}})
    if kind == "FineTuneJob":
        ended = manifest["status"]["phase"] in ("Succeeded", "Failed")
        change = {"ttlSecondsAfterFinished" if ended else "maxRestarts": 9}
        now = api.patch(kind, "default", name, {"spec": change})
        assert missing(change, now["spec"]) == []
        with pytest.raises(ApiError):
            api.patch(kind, "default", name, {"spec": {"training": {"seed": 9}}})
    api.patch(kind, "default", name, {"status": {"observedGeneration": 5}}, "status")


@pytest.mark.parametrize("manifest", NAMESPACED, ids=named)
def test_the_operator_continues_a_stored_object_and_the_api_server_accepts_its_writes(
    upgraded: tuple[Api, dict[str, Manifest]], manifest: Manifest
) -> None:
    api, _ = upgraded
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    cache = Cache()
    for each in ("FineTuneJob", "ModelEndpoint", "AcceleratorProfile"):
        for found in api.list(each):
            cache.put({**found, "kind": each, "apiVersion": manifest["apiVersion"]})
    before = api.get(kind, "default", name)

    key = Key(kind, "default", name)
    decision = build_controllers(SETTINGS).reconcile[kind](key, cache, datetime.now(UTC))

    assert decision is not None
    if manifest["metadata"]["name"] in ("succeeded", "failed"):
        assert decision.status is None or decision.status["phase"] == before["status"]["phase"]
        assert decision.create == ()
    if decision.status is not None:
        written = api.patch(kind, "default", name, {"status": dict(decision.status)}, "status")
        for field in ("restarts", "startedAt", "plan", "model", "data"):
            assert missing(before["status"].get(field), written["status"].get(field), field) == []
