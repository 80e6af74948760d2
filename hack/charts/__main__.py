"""`python -m hack.charts`, run in the root of the checkout, writes the generated files."""

from __future__ import annotations

import sys
from pathlib import Path

from hack.charts.policies import helm_arguments, render_policies
from hack.charts.readme import render_readme
from hack.cluster.binaries import program
from hack.cluster.process import run

CHART = Path("charts/finetune-operator")
POLICIES = Path("docs/reference/network-policies.yaml")


def main() -> int:
    """Write the README and the policies."""
    texts = (CHART / name for name in ("values.yaml", "Chart.yaml"))
    (CHART / "README.md").write_text(render_readme(*(each.read_text() for each in texts)))
    POLICIES.write_text(render_policies(run([program("helm"), *helm_arguments(str(CHART))])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
