"""In CI a skipped test is a failure, elsewhere it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
SKIPS = {
    "in the test": "import pytest\ndef test_it():\n    pytest.skip('no cluster')\n",
    "by a mark": "import pytest\n@pytest.mark.skip('no cluster')\ndef test_it(): ...\n",
    "as a module": "import pytest\npytest.skip('no cluster', allow_module_level=True)\n",
    "in a fixture": (
        "import pytest\n@pytest.fixture\ndef cluster():\n    pytest.skip('no cluster')\n"
        "def test_it(cluster): ...\n"
    ),
}
EXPECTED_FAILURE = "import pytest\n@pytest.mark.xfail\ndef test_it():\n    assert False\n"


def outcome(folder: Path, test: str, ci: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, folder / "conftest.py")
    (folder / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(folder)]
    environment = {**os.environ, "CI": ci, "PYTEST_ADDOPTS": ""}
    environment["FINETUNE_SUITE_SKIPPED"] = str(folder / "skipped")
    return subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True, check=False
    )


@pytest.mark.parametrize("where", SKIPS)
def test_a_skip_fails_in_ci_and_names_its_reason(tmp_path: Path, where: str) -> None:
    done = outcome(tmp_path, SKIPS[where], ci="true")
    assert done.returncode != 0
    assert "which CI does not allow" in done.stdout
    assert "no cluster" in done.stdout


@pytest.mark.parametrize("where", SKIPS)
def test_a_skip_is_only_reported_elsewhere(tmp_path: Path, where: str) -> None:
    done = outcome(tmp_path, SKIPS[where], ci="")
    assert done.returncode in (0, 5)
    assert "no cluster" in done.stdout
    assert (tmp_path / "skipped").read_text() == "no cluster\n"


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    assert outcome(tmp_path, EXPECTED_FAILURE, ci="true").returncode == 0
