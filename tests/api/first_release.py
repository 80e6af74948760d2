"""What the first release stores, written to fixtures/ for test_crd_upgrade.py.

`PYTHONPATH=operator:. python -m tests.api.first_release`, run in the root of the checkout, writes
the CRDs and objects with the statuses that the operator gives them. It is run for the last time for
the first release: every later version must read what that one stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml
from finetune_api import API_VERSION, crd
from finetune_operator.decision import Manifest

from tests.unit.endpoints.world import GPU_PROFILE
from tests.unit.gitops import endpoint_cases, job_cases, profile_cases
from tests.unit.gitops.cases import Cases
from tests.unit.jobs.world import CPU_PROFILE

FIXTURES = Path(__file__).parent / "fixtures"
JOBS = {
    "training": "is_training",
    "retried": "trains_again_after_a_crash",
    "suspended": "was_suspended_while_it_trained",
    "succeeded": "has_succeeded",
    "failed": "has_failed_in_prepare",
}
"""Names of the jobs, and the cases that they come from; test_crd_upgrade.py refers to some."""
ENDPOINTS = {"endpoint": "has_switched_to_a_second_revision"}
POOLS = {"pool": "can_be_used"}
PROFILES = {"cpu": CPU_PROFILE, "gpu": {**GPU_PROFILE, "cpuPerDevice": 8}}
"""Specs of profiles without a status, as with an operator that watches only some namespaces."""
HEADER = """\
# What the first release stored: its custom resources with every status that it wrote. Its schema is
# in crds/. Written by `python -m tests.api.first_release` until that release, and only added to
# after it: every later version must read it.
"""


def build_objects() -> Iterator[Manifest]:
    """The objects, without what their namespace and the API server add."""
    written = (
        (job_cases.CASES, JOBS),
        (endpoint_cases.CASES, ENDPOINTS),
        (profile_cases.CASES, POOLS),
    )
    for cases, names in written:
        for name, case in names.items():
            found = _observe(cases, case)
            kept = {key: found[key] for key in ("kind", "spec", "status")}
            yield {"apiVersion": API_VERSION, **kept, "metadata": {"name": name}}
    for name, spec in PROFILES.items():
        kind = {"apiVersion": API_VERSION, "kind": "AcceleratorProfile"}
        yield {**kind, "metadata": {"name": name}, "spec": spec}


def _observe(cases: Cases, name: str) -> Manifest:
    (case,) = (each for each in cases.all if each.name == name)
    return case.observe().found


def main() -> None:
    """Write the CRDs and the objects."""
    crd.write_manifests(FIXTURES / "crds", crd.render_crds())
    body = yaml.safe_dump_all(build_objects(), sort_keys=True, width=100)
    (FIXTURES / "objects.yaml").write_text(HEADER + body)


if __name__ == "__main__":
    main()
