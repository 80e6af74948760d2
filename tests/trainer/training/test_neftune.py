"""NEFTune: how much noise each sample gets, and when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.objectives import collate
from finetune_trainer.training.neftune import EmbeddingNoise

from tests.trainer.sequences import model_of, packed, sample

pytestmark = pytest.mark.filterwarnings("default")
HIDDEN = 64
ALPHA = 5.0


class Embedded:
    """The input of the first block of a model."""

    def __init__(self, model: Any) -> None:
        self.model, self.noise = model, EmbeddingNoise(model, ALPHA)
        self.value = torch.empty(0)
        model.model.layers[0].register_forward_pre_hook(self._store, with_kwargs=True)

    def _store(self, layer: Any, inputs: Any, named: Any) -> None:
        self.value = (inputs[0] if inputs else named["hidden_states"]).detach().clone()

    def of(self, batch: collate.MicroBatch, noisy: bool = True) -> torch.Tensor:
        """The embeddings, or, with `noisy`, the noise that was added to them."""
        ids, positions = batch.input_ids, batch.position_ids
        self.model(input_ids=ids, position_ids=positions, use_cache=False)
        quiet = self.value
        if not noisy:
            return quiet
        with self.noise.enable(batch.sample_lengths):
            self.model(input_ids=ids, position_ids=positions, use_cache=False)
        return self.value - quiet


@pytest.fixture
def embedded(tiny_model_folder: Path) -> Iterator[Embedded]:
    seen = Embedded(model_of(tiny_model_folder))
    yield seen
    seen.noise.remove_hook()


@pytest.mark.parametrize("flatten", [False, True])
def test_noise_depends_only_on_the_length_of_the_sample(embedded: Embedded, flatten: bool) -> None:
    # Packed with another sample, padded to a longer row, and alone.
    rows = [packed(sample(30), sample(10)), sample(20)]
    noise = embedded.of(collate.collate(rows, flatten))
    parts = (
        [(noise[0, :30], 30), (noise[0, 30:40], 10), (noise[0, 40:], 20)]
        if flatten
        else [(noise[0, :30], 30), (noise[0, 30:], 10), (noise[1, :20], 20)]
    )
    for part, length in parts:
        most = ALPHA / (length * HIDDEN) ** 0.5
        assert part.abs().max() == pytest.approx(most, rel=0.02)
        assert part.abs().max() <= most * 1.0001
        assert part.std() == pytest.approx(most / 3**0.5, rel=0.1)
    if not flatten:
        assert not noise[1, 20:].any()


def test_noise_is_added_only_while_enabled_and_with_gradients(embedded: Embedded) -> None:
    batch = collate.collate([sample(12)])
    quiet = embedded.of(batch, noisy=False)
    assert torch.equal(embedded.of(batch, noisy=False), quiet)
    assert embedded.of(batch).abs().max() > 0
    with torch.no_grad():
        assert not embedded.of(batch).any()
    assert torch.equal(embedded.of(batch, noisy=False), quiet)


def test_noise_is_reproducible_from_its_seed(embedded: Embedded) -> None:
    batch = collate.collate([sample(12)])
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(embedded.of(batch))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
