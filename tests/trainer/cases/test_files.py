"""Splits, configurations and digests of data sets through the prepare stage."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.json_lines import read_json_lines
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.evaluation.prompts import choose_prompts

from tests.trainer.prepare_world import World, facts_of
from tests.trainer.servers import Hub, Repository, running_bucket
from tests.trainer.tiny import tiny_rows, write_rows

ROWS: list[dict[str, Any]] = list(tiny_rows(90))
TRAIN, VALIDATION, TEST = ROWS[:60], ROWS[60:75], ROWS[75:]


def test_each_split_of_a_folder_has_its_use(world: World) -> None:
    for split, rows in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        world.rows(f"set/data/{split}-00000-of-00001.jsonl", rows)
    uri = "pvc://data/set"
    facts = facts_of(world.prepare(dataset={"train": [{"uri": uri}], "validation": {"uri": uri}}))
    assert (facts.train_examples, facts.eval_examples) == (len(TRAIN), len(VALIDATION))
    counts = [(each.files, each.files_left_out, each.rows) for each in facts.sources or ()]
    assert counts == [(1, 2, len(TRAIN)), (1, 2, len(VALIDATION))]


def test_a_configuration_of_a_data_set_on_the_hub_is_read_at_one_commit(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    folder = tmp_path / "words"
    write_rows(folder / "english" / "train.jsonl", TRAIN)
    write_rows(folder / "german" / "my rows.jsonl", VALIDATION)
    card = (
        "---\nconfigs:\n- {config_name: english, data_dir: english}\n- config_name: german\n---\n"
    )
    (folder / "README.md").write_text(card)
    hub.repositories["datasets/acme/words"] = Repository(folder)
    for field in ("dataset.train[0]", "dataset.validation"):
        world.secrets[field] = world.secrets["model"]
    uri = "hf://datasets/acme/words"
    train = [{"uri": uri, "config": "english"}]
    validation = {"uri": f"{uri}/german/my%20rows.jsonl"}
    facts = facts_of(world.prepare(dataset={"train": train, "validation": validation}))
    assert (facts.train_examples, facts.eval_examples) == (len(TRAIN), len(VALIDATION))
    commit = hub.repositories["datasets/acme/words"].commit
    sources = [(each.uri, each.revision) for each in facts.sources or ()]
    assert sources == [(uri, commit), (validation["uri"], commit)]


def test_a_digest_pins_the_files_of_a_source(world: World) -> None:
    world.rows("set/a.jsonl", TRAIN)
    folder = world.rows("set/b/c.jsonl", TEST).parents[1]
    output = subprocess.run(
        "sha256sum a.jsonl b/c.jsonl | sha256sum",
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    train = [{"uri": "pvc://data/set", "sha256": output.split()[0]}]
    (source,) = facts_of(world.prepare(dataset={"train": train})).sources or ()
    assert source.digest == f"sha256:{train[0]['sha256']}"
    world.rows("set/a.jsonl", TRAIN[1:])
    failure = world.fails_again(
        dataset={"train": [{"uri": "pvc://data/set", "sha256": source.digest}]}
    )
    assert failure.reason == "DigestMismatch"
    assert failure.message.count("sha256:") == 2
    assert source.digest in failure.message


def test_a_version_of_an_object_is_read_and_recorded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_bucket({}) as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        old, new = (
            bucket.put("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
            for rows in (TRAIN, TEST)
        )
        train = [{"uri": "gs://acme/rows.jsonl", "version": old}]
        pinned = facts_of(world.prepare(dataset={"train": train}))
        recorded = world.manifest()["facts"]["sources"][0]["version"]
        newest = facts_of(world.prepare(dataset={"train": [{"uri": "gs://acme/rows.jsonl"}]}))
        found = [
            [(each.rows, each.version) for each in facts.sources or ()]
            for facts in (pinned, newest)
        ]
        train[0]["version"] = "1699999999999999"
        failure = world.fails_again(dataset={"train": train})
    assert found == [[(len(TRAIN), old)], [(len(TEST), new)]]
    assert recorded == old
    assert failure.reason == "VersionNotFound"
    assert "dataset.train[0].version" in (failure.remedy or "")


def test_line_ends_of_unicode_stay_inside_their_texts(
    world: World, tiny_model_folder: Path
) -> None:
    ends = "\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei\rj"
    rows = [{"prompt": f"Clean {i}:{ends}", "completion": f"{i}{ends}"} for i in range(40)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (world.root / "pvc" / "data" / "ends.jsonl").write_bytes(text.encode())
    facts = facts_of(world.prepare(dataset={"train": [{"uri": "pvc://data/ends.jsonl"}]}))
    assert facts.train_examples + facts.eval_examples == 40
    held_out = read_json_lines(world.data / "eval.jsonl")
    run = world.run_config(evaluation={"generations": 40}).model_copy(update={"stage": "evaluate"})
    prompts = choose_prompts(run, load_tokenizer(tiny_model_folder))
    assert len(prompts) == len(held_out) == facts.eval_examples
    expected = {row["prompt"]: row["completion"] for row in rows}
    found = {each.messages[0]["content"]: each.reference for each in prompts}
    assert found.items() <= expected.items()
