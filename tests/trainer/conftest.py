"""What the trainer's tests share: one tiny model per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_trainer.sources import Credentials

from tests.trainer.prepare_world import World
from tests.trainer.servers import Hub, Repository, running_hub
from tests.trainer.tiny import tiny_model


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with tokenizer and ChatML template; treat it as read-only."""
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def hub(tiny_model_folder: Path) -> Iterator[Hub]:
    """A model hub on the loopback interface that offers the tiny model."""
    with running_hub({"acme/tiny": Repository(tiny_model_folder)}) as running:
        yield running


@pytest.fixture
def world(tmp_path: Path, hub: Hub) -> World:
    """Folders as the pod of prepare sees them."""
    made = World(tmp_path)
    made.secrets["model"] = Credentials({"HF_ENDPOINT": hub.url})
    return made
