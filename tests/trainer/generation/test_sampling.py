"""Completions sampled by our own loop, against transformers and against their distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_trainer.generation import sampling
from transformers import GenerationConfig

from tests.trainer.prompts import decisive_model, make_prompt
from tests.trainer.tiny import CONTEXT, VOCABULARY

pytestmark = pytest.mark.filterwarnings("default")
CPU = torch.device("cpu")
HOT = 10.0
"""At this temperature the model below may draw every token."""


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    return decisive_model(tiny_model_folder)


def run_sampling(
    model: Any, prompts: list[np.ndarray], prompt_indices: list[int], **more: Any
) -> list[sampling.Tokens]:
    usual = {"temperature": 1.0, "max_new_tokens": 12, "end_tokens": (), "is_collective": False}
    config = sampling.SamplingConfig(**{**usual, **more})
    uniforms = [sampling.draw_uniforms(1, 1, index, 12) for index in range(len(prompt_indices))]
    with torch.no_grad():
        return sampling.sample_completions(model, prompts, prompt_indices, uniforms, config, CPU)


def test_completions_at_low_temperature_are_the_greedy_ones_of_transformers(model: Any) -> None:
    prompts = [make_prompt(9, 1), make_prompt(4, 2), make_prompt(15, 3)]
    sampled = run_sampling(model, prompts, [0, 1, 2, 1], temperature=1e-4)
    for index, prompt_index in enumerate([0, 1, 2, 1]):
        ids = torch.from_numpy(prompts[prompt_index].astype(np.int64))[None]
        greedy = GenerationConfig(
            max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=[]
        )
        sequence = model.generate(input_ids=ids, generation_config=greedy, use_cache=True)
        assert sampled[index].tolist() == sequence[0, ids.shape[1] :].tolist()


def test_a_completion_does_not_depend_on_the_others_in_its_batch(model: Any) -> None:
    prompts = [make_prompt(9, 1), make_prompt(4, 2), make_prompt(15, 3)]
    ends = tuple(range(0, VOCABULARY, 6))
    prompt_indices = [0, 0, 1, 1, 2, 2, 2, 2]
    together = run_sampling(model, prompts, prompt_indices, end_tokens=ends, temperature=HOT)
    for index, prompt_index in enumerate(prompt_indices):
        uniforms = [sampling.draw_uniforms(1, 1, index, 12)]
        config = sampling.SamplingConfig(HOT, 12, ends, is_collective=False)
        with torch.no_grad():
            alone = sampling.sample_completions(
                model, [prompts[prompt_index]], [0], uniforms, config, CPU
            )
        assert together[index].tolist() == alone[0].tolist()
    # The lengths differ, so completions that ended early left the batch before the others.
    assert len({len(completion) for completion in together}) > 3


def test_a_completion_ends_at_its_first_end_token_and_keeps_it(model: Any) -> None:
    ends = tuple(range(0, VOCABULARY, 6))
    for completion in run_sampling(
        model, [make_prompt(9, 1)], [0] * 16, end_tokens=ends, temperature=HOT
    ):
        places = [place for place, token in enumerate(completion) if token in ends]
        assert places in ([], [len(completion) - 1])
        assert places or len(completion) == 12


def test_tokens_follow_the_probabilities_of_the_model() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, float("-inf"), 1.0])
    uniform = torch.from_numpy(np.random.default_rng(0).random(40_000))
    tokens = sampling.pick_tokens(logits.expand(40_000, -1), uniform, temperature=0.5)
    frequencies = np.bincount(tokens.numpy(), minlength=5) / 40_000
    assert frequencies == pytest.approx(torch.softmax(logits / 0.5, -1).numpy(), abs=0.01)
    assert frequencies[3] == 0


def test_uniforms_differ_between_completions_and_steps_and_can_be_repeated() -> None:
    drawn = {
        sampling.draw_uniforms(*key, 4).tobytes()
        for key in [(1, 1, 0), (1, 1, 1), (1, 2, 0), (2, 1, 0)]
    }
    assert len(drawn) == 4
    assert (
        sampling.draw_uniforms(1, 1, 0, 4).tolist()
        == sampling.draw_uniforms(1, 1, 0, 9)[:4].tolist()
    )


def test_as_many_completions_are_sampled_at_once_as_fit_into_memory(model: Any) -> None:
    # Two layers, two key-value heads of 16 numbers: 512 bytes of fp32 for each token.
    fit = sampling.max_concurrent_completions(model.config, CONTEXT, CPU)
    assert fit == sampling.CACHE_BYTES["cpu"] // (512 * CONTEXT)
    assert sampling.max_concurrent_completions(model.config, 10**12, CPU) == 1
