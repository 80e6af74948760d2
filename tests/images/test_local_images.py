"""The local cluster's images start as a restricted pod would start them, and change in seconds."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import uuid
from pathlib import Path

import pytest

from hack.cluster.images import Image
from hack.images import catalog
from hack.images.layers import code_layer
from hack.images.product import PROBE
from tests.images.conftest import Containerd

pytestmark = pytest.mark.timeout(900)

MODULES = {
    "operator": ("kopf", "kubernetes", "finetune_api", "finetune_operator.controllers"),
    "trainer": ("torch", "deepspeed", "transformers", "peft", "finetune_api", "finetune_trainer"),
    "vllm": ("torch", "vllm.entrypoints.openai.api_server"),
}

# Prints the modules of a training run that have a source file but no compiled one next to it.
UNCOMPILED = """
import pathlib, sys, types
import torch, deepspeed, transformers, finetune_trainer, finetune_api
specs = [m.__spec__ for m in list(sys.modules.values()) if type(m) is types.ModuleType]
print([s.name for s in specs if s and s.cached and not pathlib.Path(s.cached).exists()])
"""


@pytest.mark.parametrize("name", catalog.NAMES)
def test_image_starts_without_root_on_a_read_only_root(containerd: Containerd, name: str) -> None:
    command = ("python", "-c", PROBE, *MODULES[name])
    done = containerd.start(catalog.reference(name), *command)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["uid"], found["gid"]) == (65532, 65532)
    assert not found["rootIsWritable"]
    assert set(found["versions"]) == set(MODULES[name])


def test_no_module_is_compiled_at_start(containerd: Containerd) -> None:
    done = containerd.start(catalog.reference("trainer"), "python", "-c", UNCOMPILED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_change_of_our_code_ships_only_our_code(
    containerd: Containerd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seconds, not minutes: the libraries are not packed, shipped or unpacked again."""
    changed = tmp_path / "finetune_trainer"
    shutil.copytree(catalog.TRAINER, changed)
    # Never the same twice, or the layer would come from the cache.
    (changed / "changed.py").write_text(f'"""{uuid.uuid4()}"""\n')
    started = time.monotonic()
    before = catalog.image("trainer")
    code = code_layer([catalog.CONTRACT, changed])
    reference = "localhost/finetune-trainer:changed"
    image = dataclasses.replace(before, reference=reference, layers=(*before.layers[:-1], code))
    containerd.load(Image(reference, image.digest, image.write))
    seconds = time.monotonic() - started
    with capsys.disabled():
        print(f"\na change of our code was built and imported in {seconds:.1f} s")
    assert containerd.images()[reference] == image.digest
    done = containerd.start(reference, "python", "-c", "import finetune_trainer.changed")
    assert done.returncode == 0, done.stderr
    assert seconds < 30
