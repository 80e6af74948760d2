"""Early stopping: what an evaluation measures and does not change, and which weights result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from finetune_api import finetunejob
from finetune_trainer.data.token_store import TokenStore
from finetune_trainer.training.early_stopping import EarlyStopping
from tokenizers import Tokenizer

from tests.trainer import jobs, pool
from tests.trainer.drive_training import drive
from tests.trainer.jobs import losses, make_run, pack, to_json, tokenize_row, write_data
from tests.trainer.tiny import tiny_model, tiny_rows

STRATEGIES = ("DDP", "ZeRO1", "ZeRO2", "ZeRO3", "FSDP")
EVERY = 2
FALLING = {"earlyStopping": {"everySteps": EVERY}}
NEVER_BETTER = {"earlyStopping": {"everySteps": EVERY, "patience": 2, "minImprovement": 5}}
"""The first evaluation is the best one, and two more end the run."""


def early_stopping(**settings: Any) -> EarlyStopping:
    return EarlyStopping(finetunejob.EarlyStopping(**settings))


def test_the_last_step_is_always_evaluated() -> None:
    early = early_stopping(every_steps=4)
    assert [step for step in range(1, 11) if early.should_evaluate(step, is_last=step == 10)] == [
        4,
        8,
        10,
    ]


def test_patience_counts_consecutive_evaluations_without_improvement() -> None:
    early = early_stopping(patience=2, min_improvement=0.1)
    seen = [
        (early.add_evaluation(step, loss), early.is_exhausted)
        for step, loss in enumerate((3, 2, 1.95, 1.8))
    ]
    assert seen == [(True, False), (True, False), (False, False), (True, False)]
    assert [early.add_evaluation(5, 1.75), early.add_evaluation(6, float("nan"))] == [False, False]
    assert (early.best_step, early.best_loss, early.is_exhausted) == (3, 1.8, True)


def test_a_resumed_run_keeps_its_count() -> None:
    first, second = early_stopping(patience=2), early_stopping(patience=2)
    first.add_evaluation(10, 2.0)
    first.add_evaluation(20, 2.5)
    second.load_state_dict(first.state_dict())
    second.add_evaluation(30, 2.4)
    assert (second.best_step, second.best_loss, second.is_exhausted) == (10, 2.0, True)


class Runs(jobs.Runs):
    """The same, with a list of cases to train."""

    def __init__(self, root: Path, model: Path) -> None:
        super().__init__(root)
        self.model = model
        self.cases: list[dict[str, Any]] = []

    def add(self, name: str, folder: str = "", packed: bool = False, **how: Any) -> None:
        job = self.root / (folder or name) / "job"
        if not job.exists():
            write_data(job / "data", self.model)
        if packed:
            pack_held_out(job / "data", self.model)
        more = {"stop_after": how.pop("stop_after", None)}
        run = make_run(job.parent, self.model, **how)
        self.cases.append({"name": name, "run": to_json(run), **more})

    def train(self, world: int) -> None:
        path = self.root / f"cases-{world}.json"
        path.write_text(json.dumps(self.cases))
        pool.run(drive, path, world=world, folder=self.root / f"logs-{world}")
        self.cases = []

    def eval_losses(self, name: str) -> dict[int, float]:
        return {
            line["step"]: line["eval_loss"] for line in self.history(name) if "eval_loss" in line
        }


def pack_held_out(folder: Path, model: Path) -> None:
    """Pack the same held-out samples, several to a sequence."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    samples = [tokenize_row(tokenizer, row) for row in tiny_rows(72)[60:]]
    rows = pack(samples, 96)
    assert len(rows) < len(samples)
    shutil.rmtree(folder / "eval")
    TokenStore.write(folder / "eval", samples, rows)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("early")
    runs = Runs(root, tiny_model(root / "models" / "tiny"))
    stopped = {"training": NEVER_BETTER, "steps": 12, "lora": {"dropout": 0.2}}
    runs.add("spoiled", stop_after=2 * EVERY, world_size=1, **stopped)
    for world in (1, 4):
        runs.add(f"world-{world}", lora={"dropout": 0}, world_size=world, training=FALLING)
        runs.train(world)
    runs.add("world-2", lora={"dropout": 0}, training=FALLING)
    runs.add("watched", lora={"dropout": 0}, training={"evalSteps": EVERY})
    runs.add("packed", lora={"dropout": 0}, training=FALLING, packed=True)
    for strategy in STRATEGIES:
        how: dict[str, Any] = {"strategy": strategy, "lora": {"dropout": 0.2}}
        runs.add(f"{strategy}-blind", **how)
        runs.add(f"{strategy}-evaluating", training=FALLING, **how)
        runs.add(f"{strategy}-promoted", training=NEVER_BETTER, steps=12, **how)
        runs.add(f"{strategy}-first", stop_after=EVERY, training=NEVER_BETTER, steps=12, **how)
    best = root / "spoiled" / "job" / "checkpoints" / "1" / f"step-{EVERY:08d}"
    (best / "rank-00000.safetensors").unlink()
    runs.add("spoiled-resumed", folder="spoiled", attempt=2, **stopped)
    runs.add("stopped", stop_after=2 * EVERY, **stopped)
    runs.add("resumed", folder="stopped", attempt=2, **stopped)
    runs.train(2)
    return runs


def test_the_held_out_loss_is_the_same_on_one_two_and_four_ranks(runs: Runs) -> None:
    reference = runs.eval_losses("world-1")
    assert sorted(reference) == [2, 4, 6]
    assert reference[6] < reference[2]
    for world in (2, 4):
        assert runs.eval_losses(f"world-{world}") == pytest.approx(reference, abs=2e-6)


def test_the_held_out_loss_is_evaluated_without_early_stopping_too(runs: Runs) -> None:
    watched, stopping = runs.case_result("watched"), runs.case_result("world-2")
    assert runs.eval_losses("watched") == runs.eval_losses("world-2")
    assert sorted(runs.eval_losses("watched")) == [2, 4, 6]
    assert watched["trained_digest"] == stopping["trained_digest"]
    assert watched["facts"]["finalEvalLoss"] == runs.eval_losses("watched")[6]
    assert watched["reported"]["eval_loss"] == runs.eval_losses("watched")[6]
    assert "bestStep" not in watched["facts"]
    assert "finalEvalLoss" not in stopping["facts"]


def test_the_held_out_loss_does_not_depend_on_packing(runs: Runs) -> None:
    assert runs.eval_losses("packed") == pytest.approx(runs.eval_losses("world-2"), abs=2e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_evaluations_do_not_change_training(runs: Runs, strategy: str) -> None:
    blind, evaluating = (runs.root / f"{strategy}-{how}" / "job" for how in ("blind", "evaluating"))
    assert losses(evaluating) == losses(blind)
    digests = {
        runs.case_result(f"{strategy}-{how}")["trained_digest"] for how in ("blind", "evaluating")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_every_strategy_measures_the_same_held_out_loss(runs: Runs, strategy: str) -> None:
    # Dropout is on in training, and equal under all strategies; evaluations have none.
    expected = runs.eval_losses("DDP-evaluating")
    assert runs.eval_losses(f"{strategy}-evaluating") == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_best_weights_are_the_result(runs: Runs, strategy: str) -> None:
    promoted = runs.case_result(f"{strategy}-promoted")
    facts = promoted["facts"]
    assert promoted["finished"] is True
    assert (facts["steps"], facts["bestStep"]) == (3 * EVERY, EVERY)
    assert facts["bestEvalLoss"] == runs.eval_losses(f"{strategy}-promoted")[EVERY]
    first = runs.case_result(f"{strategy}-first")
    assert first["facts"]["steps"] == EVERY
    assert promoted["trained_digest"] == first["trained_digest"]


def test_a_run_stopped_between_evaluations_keeps_its_patience(runs: Runs) -> None:
    assert runs.case_result("stopped")["finished"] is False
    resumed = runs.case_result("resumed")
    assert resumed["finished"] is True
    assert (resumed["facts"]["steps"], resumed["facts"]["bestStep"]) == (3 * EVERY, EVERY)
    assert resumed["trained_digest"] == runs.case_result("DDP-promoted")["trained_digest"]


def test_a_damaged_best_checkpoint_is_not_reported_as_the_result(runs: Runs) -> None:
    resumed = runs.case_result("spoiled-resumed")
    assert resumed["finished"] is True
    facts = resumed["facts"]
    assert (facts["steps"], facts["bestStep"]) == (3 * EVERY, 3 * EVERY)
    assert facts["bestEvalLoss"] == runs.history("spoiled", 2)[-1]["eval_loss"]
