"""docs/reference/network-policies.yaml: the chart's policies for a namespace with jobs.

The chart creates them in `watchNamespaces`. Where all namespaces are watched, an administrator
applies this file in each of them.
"""

from __future__ import annotations

from typing import Any

import yaml

NAMESPACE = "team-a"
TEMPLATE = "templates/networkpolicies-jobs.yaml"
HEAD = """\
# Generated from the chart by `make charts`; edit that.
#
# The NetworkPolicies of a namespace with jobs, for a release finetune-operator in the namespace
# finetune-system with the default values. Apply them in every namespace with jobs if the operator
# watches all namespaces:
#
#   kubectl -n NAMESPACE apply -f network-policies.yaml
"""


def helm_arguments(chart: str) -> list[str]:
    """The command line of helm that renders the policies."""
    release = ["template", "finetune-operator", chart, "--namespace", "finetune-system"]
    values = ["--set=networkPolicy.enabled=true", f"--set=watchNamespaces={{{NAMESPACE}}}"]
    return [*release, "--kube-version=1.35.0", "--show-only", TEMPLATE, *values]


def render_policies(rendered: str) -> str:
    """The file, from what helm printed: without the namespace, and without Helm's labels, because
    kubectl applies it."""
    manifests = [_without_release(each) for each in yaml.safe_load_all(rendered) if each]
    body: str = yaml.safe_dump_all(manifests, sort_keys=False, width=120)
    return HEAD + body


def _without_release(manifest: dict[str, Any]) -> dict[str, Any]:
    return {**manifest, "metadata": {"name": manifest["metadata"]["name"]}}
