"""The host of a rank in messages is one that the operator finds among its pods."""

from __future__ import annotations

import socket

import pytest
from finetune_api.protocol import NODE_NAME_ENV
from finetune_trainer.runtime.host_name import get_host_name


def test_on_the_host_network_it_is_the_name_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "worker-1.corp.example")
    monkeypatch.setenv(NODE_NAME_ENV, "worker-1")
    assert get_host_name() == "worker-1"


@pytest.mark.parametrize("name", [None, ""])
def test_on_the_network_of_pods_it_is_the_name_of_the_pod(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "glossary-train-1-0")
    monkeypatch.delenv(NODE_NAME_ENV, raising=False)
    if name is not None:
        monkeypatch.setenv(NODE_NAME_ENV, name)
    assert get_host_name() == "glossary-train-1-0"
