"""AcceleratorProfiles that the chart creates: who owns them, and when they are deleted."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from hack.cluster.apiserver import ControlPlane
from hack.cluster.errors import ClusterError
from tests.api.charts import CRDS, OPERATOR, RELEASE, SYSTEM, helm, rendered, upgrade
from tests.api.client import Api, Manifest
from tests.api.conftest import started

KEEP = {"helm.sh/resource-policy": "keep"}
POOLS = ("a100-40gb", "a100-80gb", "h100-80gb", "h200-141gb", "l4-24gb")
ONLY_CPU = tuple(f"--set=profiles.pools.{name}=null" for name in POOLS)
OTHER = "other"


def profiles(*values: str) -> list[Manifest]:
    return [each for each in rendered(*values) if each["kind"] == "AcceleratorProfile"]


def test_profiles_are_kept_by_default() -> None:
    assert {each["metadata"]["annotations"] == KEEP for each in profiles()} == {True}
    assert not [each for each in profiles("profiles.keep=false") if "annotations" in each]
    assert not profiles("profiles.create=false")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server with the CRDs of the chart and no release of the operator."""
    with started(tmp_path_factory.mktemp("plane")) as plane:
        upgrade(plane, "crds", CRDS, "--wait")
        yield plane


@pytest.fixture
def api(plane: ControlPlane) -> Iterator[Api]:
    api = Api(plane.kubeconfig)
    yield api
    for release in (RELEASE, OTHER):
        uninstall(plane, release)
    for profile in api.list("AcceleratorProfile"):
        api.delete("AcceleratorProfile", "", profile["metadata"]["name"])


def uninstall(plane: ControlPlane, release: str) -> None:
    where = ("--kubeconfig", plane.kubeconfig, "--namespace", SYSTEM, "--ignore-not-found")
    helm("uninstall", release, *where)


def install(plane: ControlPlane, release: str, *flags: str) -> str:
    return upgrade(plane, release, OPERATOR, *ONLY_CPU, *flags)


def names(api: Api) -> list[str]:
    return [each["metadata"]["name"] for each in api.list("AcceleratorProfile")]


def test_profiles_survive_an_uninstall_and_belong_to_the_release_again(
    plane: ControlPlane, api: Api
) -> None:
    assert "keeps its AcceleratorProfiles" in install(plane, RELEASE, "--set=profiles.default=cpu")
    uid = api.get("AcceleratorProfile", "", "cpu")["metadata"]["uid"]
    uninstall(plane, RELEASE)
    assert api.get("AcceleratorProfile", "", "cpu")["spec"]["default"]
    install(plane, RELEASE, "--set=profiles.default=cpu")
    install(plane, RELEASE, "--set=profiles.pools.cpu.maxNodes=7")
    found = api.get("AcceleratorProfile", "", "cpu")
    assert (found["metadata"]["uid"], found["spec"]["maxNodes"]) == (uid, 7)
    assert not found["spec"]["default"]


@pytest.mark.parametrize(
    "value", ["default=cpu", "pools.cpu.maxNodes=7", "pools.cpu.sharedMemory=null"]
)
def test_a_profile_that_stayed_and_differs_is_deleted_first(
    plane: ControlPlane, api: Api, value: str
) -> None:
    """Helm adopts an object that exists as it is, and later compares releases with each other."""
    install(plane, RELEASE)
    uninstall(plane, RELEASE)
    with pytest.raises(ClusterError, match="AcceleratorProfile cpu stayed from an earlier"):
        install(plane, RELEASE, f"--set=profiles.{value}")
    plane.kubectl("delete", "accel", "cpu")
    install(plane, RELEASE, f"--set=profiles.{value}")


def test_every_profile_of_the_chart_is_recognized_after_an_uninstall(
    plane: ControlPlane, api: Api
) -> None:
    upgrade(plane, RELEASE, OPERATOR)
    uninstall(plane, RELEASE)
    upgrade(plane, RELEASE, OPERATOR)
    assert len(names(api)) == 1 + len(POOLS)


def test_profiles_are_deleted_with_the_release_without_keep(plane: ControlPlane, api: Api) -> None:
    notes = install(plane, RELEASE, "--set=profiles.keep=false")
    assert "deletes its AcceleratorProfiles" in notes
    uninstall(plane, RELEASE)
    assert names(api) == []


def test_a_second_release_does_not_take_a_profile_by_accident(
    plane: ControlPlane, api: Api
) -> None:
    install(plane, RELEASE)
    owner = f"belongs to the release {RELEASE} in the namespace {SYSTEM}"
    with pytest.raises(ClusterError, match=f"AcceleratorProfile cpu {owner}: set profiles.create"):
        install(plane, OTHER)
    install(plane, OTHER, "--set=profiles.create=false")
    uninstall(plane, OTHER)
    assert names(api) == ["cpu"]


def test_a_profile_that_stayed_can_be_handed_over_as_the_docs_say(
    plane: ControlPlane, api: Api
) -> None:
    install(plane, RELEASE)
    uninstall(plane, RELEASE)
    owner = (f"meta.helm.sh/release-name={OTHER}", f"meta.helm.sh/release-namespace={SYSTEM}")
    plane.kubectl("annotate", "acceleratorprofiles", "cpu", "--overwrite", *owner)
    install(plane, OTHER, "--set=profiles.keep=false")
    uninstall(plane, OTHER)
    assert names(api) == []


def test_a_profile_of_a_user_is_not_replaced(plane: ControlPlane, api: Api) -> None:
    (profile,) = (each for each in profiles() if each["metadata"]["name"] == "cpu")
    api.create({**profile, "metadata": {"name": "cpu"}})
    with pytest.raises(ClusterError, match="AcceleratorProfile cpu exists and belongs to no"):
        install(plane, RELEASE)
    install(plane, RELEASE, "--set=profiles.pools.cpu=null")
    assert "annotations" not in api.get("AcceleratorProfile", "", "cpu")["metadata"]


def test_a_pool_that_is_removed_with_its_mark_cannot_stay_a_second_default(
    plane: ControlPlane, api: Api
) -> None:
    pool = "--set=profiles.pools.big.memoryPerDevice=64Gi"
    install(plane, RELEASE, pool, "--set=profiles.default=big")
    for default in ("cpu", ""):
        message = re.escape(f'is marked as default, but profiles.default is "{default}": delete')
        with pytest.raises(ClusterError, match=f"AcceleratorProfile big, which .* {message}"):
            install(plane, RELEASE, f"--set=profiles.default={default}")
    install(plane, RELEASE, pool, "--set=profiles.default=cpu")
    install(plane, RELEASE, "--set=profiles.default=cpu")
    assert names(api) == ["big", "cpu"]
    plane.kubectl("delete", "accel", "big")


def test_a_default_pool_that_is_deleted_with_its_values_is_no_second_default(
    plane: ControlPlane, api: Api
) -> None:
    """As with `profiles.keep: false`, and in an upgrade from a chart that kept no profiles."""
    pool = ("--set=profiles.pools.big.memoryPerDevice=64Gi", "--set=profiles.default=big")
    install(plane, RELEASE, *pool, "--set=profiles.keep=false")
    install(plane, RELEASE, "--set=profiles.default=cpu")
    assert names(api) == ["cpu"]
    assert (
        api.get("AcceleratorProfile", "", "cpu")["metadata"]["annotations"].items() >= KEEP.items()
    )


def test_a_default_profile_without_the_chart_needs_no_default_in_the_values(
    plane: ControlPlane, api: Api
) -> None:
    (profile,) = (each for each in profiles() if each["metadata"]["name"] == "cpu")
    spec = {**profile["spec"], "default": True}
    api.create({**profile, "metadata": {"name": "own"}, "spec": spec})
    install(plane, RELEASE)
    assert names(api) == ["cpu", "own"]


def test_a_rollback_to_a_pool_that_was_removed_needs_its_profile_deleted_first(
    plane: ControlPlane, api: Api
) -> None:
    where = ("--kubeconfig", plane.kubeconfig, "--namespace", SYSTEM)
    install(plane, RELEASE, "--set=profiles.pools.big.memoryPerDevice=64Gi")
    install(plane, RELEASE)
    with pytest.raises(ClusterError, match='no AcceleratorProfile with the name "big" found'):
        helm("rollback", RELEASE, "1", *where)
    plane.kubectl("delete", "accel", "big")
    helm("rollback", RELEASE, "1", *where)
    assert names(api) == ["big", "cpu"]
