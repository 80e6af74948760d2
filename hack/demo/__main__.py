"""`python -m hack.demo run`: what `make demo` does."""

from __future__ import annotations

import shlex
import subprocess
import sys
import urllib.error

from hack.cluster import paths
from hack.cluster.errors import ClusterError
from hack.demo import glossary, platform, report
from hack.demo.follow import JobFailed, TookTooLong
from hack.demo.kubectl import KubectlError
from hack.demo.timeline import Timeline

AROUND = """Look around:
  export KUBECONFIG={kubeconfig}
  export PATH={programs}:"$PATH"
  kubectl -n {namespace} get ftj,mep
  kubectl -n {namespace} describe ftj {name}
  kubectl -n {namespace} port-forward service/{endpoint} 8000:80 &
  curl -s --retry 5 --retry-connrefused localhost:8000/v1/models
The whole report: {report}
The cluster stays up; `make clean` takes it away."""


def run() -> int:
    """Bring everything up, run the main job, show what came of it."""
    timeline = Timeline()
    up = platform.bring_up(timeline)
    data = glossary.run(up, timeline)
    print(report.show(data))
    print(
        AROUND.format(
            kubeconfig=shlex.quote(str(paths.KUBECONFIG)),
            programs=shlex.quote(str(up.kubectl.program.parent)),
            namespace=platform.NAMESPACE,
            name=glossary.NAME,
            endpoint=glossary.ENDPOINT,
            report=glossary.REPORT,
        )
    )
    if not data["parity"]:
        print("The endpoint did not answer what evaluation recorded.", file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str]) -> int:
    if arguments != ["run"]:
        print("usage: python -m hack.demo run", file=sys.stderr)
        return 2
    try:
        return run()
    except ClusterError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (
        JobFailed,
        TookTooLong,
        KubectlError,
        subprocess.CalledProcessError,
        urllib.error.URLError,
    ) as error:
        print(f"The demo did not work: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: `make demo` resumes here, `make clean` cleans up", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
