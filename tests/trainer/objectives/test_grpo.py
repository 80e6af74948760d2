"""GRPO on real processes: it learns alike under every strategy, and resumes where it stopped.

It also resumes between steps that learn from the same completions, which it cannot sample again.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer import jobs, pool
from tests.trainer.drive_training import drive
from tests.trainer.jobs import losses, to_json
from tests.trainer.prompts import prompt_run, talkative_model, write_prompts

STRATEGIES = ("DDP", "ZeRO2", "ZeRO3", "FSDP")
METHODS = ("LoRA", "Full")
PAIRS = list(itertools.product(METHODS, STRATEGIES))
RESUMED = STRATEGIES if os.environ.get("FINETUNE_MATRIX") == "all" else ("ZeRO3", "FSDP")
STEPS, STOP = 12, 5
SHARP = {"temperature": 0.1}
"""A random model's logits are nearly equal; at this temperature a few steps separate them."""
REUSED = {**SHARP, "updates": 3, "beta": 0.1, "loss": "grpo"}
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo")


class Runs(jobs.Runs):
    """Collects cases, then runs them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.model = talkative_model(root / "models" / "tiny")
        self.cases: dict[int, list[dict[str, Any]]] = {1: [], 2: []}

    def add(self, name: str, settings: dict[str, Any], folder: str = "", **more: Any) -> None:
        where = self.root / (folder or name)
        if not where.exists():
            write_prompts(where / "job" / "data", self.model)
        stop = more.pop("stop_after", None)
        how = {"steps": STEPS, "training": {"schedule": "constant"}, **more}
        if how.get("method", "LoRA") == "LoRA":
            how.setdefault("lora", {"dropout": 0.0})
        run = prompt_run(where, self.model, settings, **how)
        wired = to_json(run)
        world = how.get("world_size", 2)
        self.cases[world].append({"name": name, "run": wired, "stop_after": stop})

    def add_stopped(self, name: str, settings: dict[str, Any], **more: Any) -> None:
        self.add(name, settings, **more)
        self.add(f"{name}-stopped", settings, stop_after=STOP, **more)
        self.add(f"{name}-resumed", settings, folder=f"{name}-stopped", attempt=2, **more)

    def run(self) -> None:
        for world, cases in self.cases.items():
            # Each world size has a file of its own, because the driver writes next to it.
            path = self.root / f"cases-{world}.json"
            path.write_text(json.dumps(cases))
            print(pool.run(drive, path, world=world, folder=self.root / f"log-{world}"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    found = Runs(tmp_path_factory.mktemp("grpo"))
    for method, strategy in PAIRS:
        name = f"{method}-{strategy}"
        how = {"method": method, "strategy": strategy}
        more: dict[str, Any] = {"lora": {"dropout": 0.1}} if method == "LoRA" else {}
        add = found.add_stopped if method == "LoRA" and strategy in RESUMED else found.add
        add(name, SHARP, **how, **more)
    found.add_stopped("reused-DDP", REUSED, strategy="DDP")
    found.add_stopped("reused-FSDP", REUSED, strategy="FSDP")
    found.add("reused-ZeRO3", REUSED, strategy="ZeRO3", steps=6)
    found.add("alone", REUSED, world_size=1, steps=6)
    found.add("alone-large", REUSED, world_size=1, steps=6, micro_batch_size=16)
    for loss in LOSSES:
        found.add(loss, {"temperature": 0.2, "loss": loss}, world_size=1, steps=2)
    found.run()
    return found


@pytest.mark.parametrize(("method", "strategy"), PAIRS)
def test_the_reward_rises(runs: Runs, method: str, strategy: str) -> None:
    name = f"{method}-{strategy}"
    history = runs.history(name)
    rewards = [line["reward"] for line in history]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.5
    # Completions that the model ends are shorter, and are not cut.
    assert history[-1]["completions/mean_length"] < history[0]["completions/mean_length"]
    assert history[-1]["completions/clipped_ratio"] == pytest.approx(1 - rewards[-1])
    assert runs.case_result(name)["trained_digest"] == runs.case_result(name, 1)["trained_digest"]


@pytest.mark.parametrize(("method", "strategy"), PAIRS)
def test_the_model_is_wrapped_by_the_strategy(runs: Runs, method: str, strategy: str) -> None:
    engine = runs.case_result(f"{method}-{strategy}")["facts"]["engine"]
    expected = {"DDP": "DistributedDataParallel", "FSDP": "FSDP"}.get(strategy, "DeepSpeedEngine")
    assert engine.startswith(expected)


@pytest.mark.parametrize("method", METHODS)
def test_every_strategy_samples_the_same_completions(runs: Runs, method: str) -> None:
    reference = runs.history(f"{method}-DDP")
    for strategy in STRATEGIES[1:]:
        for mine, theirs in zip(runs.history(f"{method}-{strategy}"), reference, strict=True):
            for metric in ("loss", "reward", "reward_std", "completions/mean_length", "tokens"):
                assert mine[metric] == pytest.approx(theirs[metric], abs=2e-3), metric


@pytest.mark.parametrize("name", [f"LoRA-{s}" for s in RESUMED] + ["reused-DDP", "reused-FSDP"])
def test_a_resumed_run_has_the_same_losses_bit_for_bit(runs: Runs, name: str) -> None:
    straight = losses(runs.job(name))
    job = runs.job(f"{name}-stopped")
    assert runs.case_result(f"{name}-stopped")["finished"] is False
    assert runs.case_result(f"{name}-resumed")["facts"]["resumedFromStep"] == STOP
    assert losses(job, 1) + losses(job, 2) == straight
    assert (
        runs.case_result(f"{name}-resumed")["trained_digest"]
        == runs.case_result(name)["trained_digest"]
    )


def test_several_steps_learn_from_the_same_completions(runs: Runs) -> None:
    history = runs.history("reused-DDP")
    for first in range(0, STEPS, 3):
        group = history[first : first + 3]
        assert len({line["tokens"] for line in group}) == 1
        assert len({line["completions/mean_length"] for line in group}) == 1
        # The first step has the policy that sampled; later ones have changed it.
        assert group[0]["clip_ratio/low_mean"] == group[0]["clip_ratio/high_mean"] == 0
    moved = [line["clip_ratio/low_mean"] + line["clip_ratio/high_mean"] for line in history]
    assert max(moved) > 0
    assert history[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert history[-1]["kl"] > 1e-3


def test_a_rollout_of_a_stopped_run_is_loaded_and_not_sampled_again(runs: Runs) -> None:
    # STOP is between the steps 4 to 6.
    job = runs.job("reused-DDP-stopped")
    assert (job / "rollouts" / "1" / "step-00000004.npz").is_file()
    assert not (job / "rollouts" / "2" / "step-00000004.npz").exists()
    assert (job / "rollouts" / "2" / "step-00000007.npz").is_file()


def test_a_rollout_that_is_missing_is_sampled_again(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.job("reused-DDP-stopped"), tmp_path / "job")
    shutil.rmtree(tmp_path / "job" / "rollouts")
    shutil.rmtree(tmp_path / "job" / "checkpoints" / "2")
    run = prompt_run(
        tmp_path,
        runs.model,
        REUSED,
        steps=6,
        attempt=3,
        lora={"dropout": 0.0},
        training={"schedule": "constant"},
    )
    wired = to_json(run)
    wired["plan"]["totalSteps"] = STEPS
    (tmp_path / "cases.json").write_text(json.dumps([{"name": "lost", "run": wired}]))
    pool.run(drive, tmp_path / "cases.json", world=2, folder=tmp_path / "log")
    seen = json.loads((tmp_path / "lost-0.json").read_text())
    assert seen["facts"]["resumedFromStep"] == STOP
    assert seen["finished"] is True
    assert (tmp_path / "job" / "rollouts" / "3" / "step-00000004.npz").is_file()


@pytest.mark.parametrize("other", ["alone", "alone-large", "reused-ZeRO3"])
def test_world_size_micro_batches_and_shards_change_no_step(runs: Runs, other: str) -> None:
    two, one = runs.history("reused-DDP")[:6], runs.history(other)
    for mine, theirs in zip(one, two, strict=True):
        names = {name for name in theirs if "/" in name} | {"reward", "entropy", "kl", "tokens"}
        for metric in (*names, "loss", "grad_norm"):
            assert mine[metric] == pytest.approx(theirs[metric], rel=1e-3, abs=1e-3), metric


def test_metrics_have_the_names_of_trl(runs: Runs) -> None:
    first = runs.history("LoRA-DDP")[0]
    assert first["rewards/length/mean"] == first["reward"]
    assert {"reward_std", "frac_reward_zero_std", "entropy", "kl"} <= first.keys()
    # A uniform distribution over 2,048 tokens has 7.6; the temperature makes some likelier.
    assert 0 < first["entropy"] < 7.6


def test_the_four_ways_to_average_differ_in_their_first_step(runs: Runs) -> None:
    first = {loss: runs.history(loss)[0] for loss in LOSSES}
    assert len({line["loss"] for line in first.values()}) >= 3
    assert len({line["reward"] for line in first.values()}) == 1
    # All sum the same losses of tokens; Dr. GRPO divides by the longest completion allowed.
    tokens = 16 * first["dapo"]["completions/mean_length"]
    assert first["dr_grpo"]["loss"] * 16 * 8 == pytest.approx(first["dapo"]["loss"] * tokens)
    # The first step clips no token, and the advantages of a group add up to zero.
    assert first["grpo"]["loss"] == pytest.approx(0, abs=1e-6)
