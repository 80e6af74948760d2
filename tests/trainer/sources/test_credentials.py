"""Credentials: taken out of the environment, and shown nowhere."""

from __future__ import annotations

import os

from finetune_trainer.sources import Address, take_credentials


def test_credentials_leave_the_environment_and_no_repr_shows_them() -> None:
    environ = {
        "FINETUNE_SECRET_MODEL_HF_TOKEN": "hf_secret\n",
        "FINETUNE_SECRET_MODEL_unrelated": "x",
        "FINETUNE_SECRET_DATA_token": "other",
        "PATH": os.defpath,
    }
    model = take_credentials(environ, "FINETUNE_SECRET_MODEL_")
    data = take_credentials(environ, "FINETUNE_SECRET_DATA_")
    assert list(environ) == ["PATH"]
    assert (model.get("HF_TOKEN"), data.get("HF_TOKEN")) == ("hf_secret", "other")
    assert "secret" not in repr(model)
    assert "secret" not in repr(Address("model", "hf://a/b", None, model))
