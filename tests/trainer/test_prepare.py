"""The whole prepare stage: sources in, tokens and facts out, mistakes reported before weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from finetune_api.protocol import ExitCode
from finetune_trainer.data.token_store import IGNORED, TokenStore
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.telemetry import Report

from tests.trainer.prepare_world import World, chat_rows, facts_of, found, run_as_pod, use_model
from tests.trainer.servers import COMMIT, Hub
from tests.trainer.tiny import CHATML, tiny_model, tiny_rows


def test_result_describes_model_and_data(world: World) -> None:
    result = world.prepare()
    assert result.model is not None
    assert (result.model.revision, result.model.folder) == (COMMIT, COMMIT[:16])
    assert (world.root / "cache" / result.model.folder / "model.safetensors").is_file()
    facts = facts_of(result)
    assert facts.format == "instruction"
    assert facts.train_examples + facts.eval_examples == 100
    assert 1 <= facts.eval_examples <= 25
    assert facts.train_sequences < facts.train_examples
    assert (facts.truncated_examples, facts.duplicate_examples) == (0, 0)
    assert world.report.snapshot().message


def test_store_has_the_rows_and_the_references_in_the_same_order(
    world: World, tiny_model_folder: Path
) -> None:
    facts = facts_of(world.prepare())
    tokenizer = load_tokenizer(tiny_model_folder)
    train, held_out = (TokenStore.open(world.data / side) for side in ("train", "eval"))
    assert (train.sample_count, train.sequence_count) == (
        facts.train_examples,
        facts.train_sequences,
    )
    assert (train.token_count, held_out.token_count) == (facts.train_tokens, facts.eval_tokens)
    assert held_out.sequence_count == held_out.sample_count == facts.eval_examples
    assert max(train.sequence_lengths) <= 128
    references = [json.loads(line) for line in _lines(world.data / "eval.jsonl")]
    for index, reference in enumerate(references):
        row = held_out.sequence(index)
        answer = tokenizer.decode(row.labels[row.labels != IGNORED])
        assert answer == reference["reference"] + "<|im_end|>"
        prompt = tokenizer.apply_chat_template(reference["messages"], add_generation_prompt=True)
        first = int((row.labels != IGNORED).argmax())
        assert row.input_ids[:first].tolist() == prompt["input_ids"]
    held = {reference["messages"][0]["content"] for reference in references}
    trained = tokenizer.decode(
        [t for i in range(train.sequence_count) for t in train.sequence(i).input_ids]
    )
    assert held
    assert not any(prompt in trained for prompt in held)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_without_packing_every_row_has_one_example(world: World) -> None:
    facts = facts_of(world.prepare(training={"packing": False}))
    assert facts.train_sequences == facts.train_examples


def test_same_inputs_give_the_same_bytes_and_another_seed_others(
    world: World, tmp_path: Path, hub: Hub
) -> None:
    world.prepare()
    other = World(tmp_path / "other")
    other.secrets = world.secrets
    os.utime(other.root / "pvc" / "data" / "rows.jsonl", ns=(1, 1))
    other.prepare()
    assert other.manifest()["files"] == world.manifest()["files"]
    other.prepare(training={"seed": 7})
    assert other.manifest()["files"] != world.manifest()["files"]
    assert other.manifest()["facts"]["digest"] == world.manifest()["facts"]["digest"]


def test_second_attempt_keeps_the_finished_files_of_the_first(world: World, hub: Hub) -> None:
    first = found(world.prepare())
    kept = (world.data / "manifest.json").stat()
    hub.fetched.clear()
    assert found(world.prepare()) == first
    assert hub.fetched == []
    now = (world.data / "manifest.json").stat()
    assert (now.st_ino, now.st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)


@pytest.mark.parametrize("damage", ["train/tokens.npy", "manifest.json"])
def test_damaged_data_is_written_again(world: World, damage: str) -> None:
    first = found(world.prepare())
    (world.data / damage).unlink()
    assert found(world.prepare()) == first
    assert (world.data / damage).is_file()


def test_rows_that_change_are_tokenised_again(world: World) -> None:
    before = facts_of(world.prepare())
    world.rows("rows.jsonl", list(tiny_rows(50)))
    after = facts_of(world.prepare())
    assert after.train_examples + after.eval_examples == 50
    assert after.digest != before.digest


def test_broken_row_fails_before_the_weights_are_fetched(world: World, hub: Hub) -> None:
    path = world.root / "pvc" / "data" / "rows.jsonl"
    path.write_text(path.read_text() + '{"prompt": "half\n')
    failure = world.fails()
    assert (failure.reason, failure.file, failure.line) == ("BrokenRow", "rows.jsonl", 101)
    assert "config.json" in hub.fetched
    assert "model.safetensors" not in hub.fetched


def test_prompt_longer_than_a_sequence_fails_with_its_line(world: World) -> None:
    rows = list(tiny_rows(20))
    rows[13] = {"prompt": "word " * 400, "completion": "no space"}
    world.rows("rows.jsonl", list(rows))
    failure = world.fails()
    assert (failure.reason, failure.file, failure.line) == ("PromptTooLong", "rows.jsonl", 14)
    assert "128" in failure.message


def test_long_answers_are_cut_and_counted(world: World) -> None:
    rows = [{"prompt": f"p{i}", "completion": "word " * 300} for i in range(10)]
    world.rows("rows.jsonl", rows)
    facts = facts_of(world.prepare())
    assert facts.truncated_examples == 10
    assert facts.longest_example > 300
    assert facts.train_tokens == 128 * facts.train_examples


def test_equal_rows_are_counted(world: World) -> None:
    world.rows("rows.jsonl", [*tiny_rows(20), *tiny_rows(20)[:5]])
    assert facts_of(world.prepare()).duplicate_examples == 5


def test_sequence_longer_than_the_context_fails(world: World) -> None:
    failure = world.fails(training={"maxSequenceLength": 1024})
    assert failure.reason == "ContextTooLong"
    assert "512" in (failure.remedy or "")


def test_all_validation_data_is_held_out(world: World) -> None:
    world.rows("check.jsonl", list(tiny_rows(130))[90:])
    facts = facts_of(world.prepare(dataset={"validation": {"uri": "pvc://data/check.jsonl"}}))
    assert (facts.train_examples, facts.eval_examples) == (90, 40)
    assert world.manifest()["removedFromTraining"] == 10


def test_error_in_the_validation_data_names_its_file(world: World) -> None:
    world.rows("check.jsonl", [{"prompt": "p", "completion": ""}])
    failure = world.fails(dataset={"validation": {"uri": "pvc://data/check.jsonl"}})
    assert (failure.reason, failure.file, failure.line) == ("EmptyText", "check.jsonl", 1)


def test_folder_without_rows_is_reported(world: World) -> None:
    (world.root / "pvc" / "data" / "notes").mkdir()
    (world.root / "pvc" / "data" / "notes" / "README.md").write_text("hello")
    failure = world.fails(dataset={"train": [{"uri": "pvc://data/notes"}]})
    assert (failure.reason, failure.file) == ("UnsupportedFormat", "README.md")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "my_own", "auto_map": {"AutoModel": "m.My"}}, "never run"),
        ({"model_type": "t5"}, "not a causal language model"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "ForSequenceClassification is"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised (gptq)"),
        ({"model_type": None}, "no model_type"),
        ({"vocab_size": 300}, "only 300 rows"),
    ],
)
def test_model_that_cannot_be_trained_is_reported_before_its_weights(
    world: World, hub: Hub, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    use_model(hub, tiny_model(tmp_path / "model"), config)
    failure = world.fails()
    assert failure.reason == "UnsupportedModel"
    assert words in failure.message
    assert "model.safetensors" not in hub.fetched


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "tokenizer.json is missing"),
        ("model.safetensors", "pytorch_model.bin is a pickle"),
    ],
)
def test_incomplete_model_names_the_missing_file(
    world: World, hub: Hub, tmp_path: Path, missing: str, words: str
) -> None:
    folder = tiny_model(tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / missing).unlink()
    use_model(hub, folder)
    failure = world.fails()
    assert failure.reason == "ModelIncomplete"
    assert words in failure.message


def test_missing_shard_is_named(world: World, hub: Hub, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    use_model(hub, folder)
    failure = world.fails()
    assert failure.reason == "ModelIncomplete"
    assert "model-00002-of-00002.safetensors" in failure.message


def test_chat_without_a_template_is_reported_but_instructions_work(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    use_model(hub, tiny_model(tmp_path / "base", template=None))
    world.rows("chat.jsonl", chat_rows(10))
    failure = world.fails(dataset={"train": [{"uri": "pvc://data/chat.jsonl"}]})
    assert failure.reason == "NoChatTemplate"
    assert facts_of(world.prepare()).format == "instruction"


def test_prepare_succeeds_after_an_outage_of_the_hub(world: World, hub: Hub) -> None:
    hub.broken_with = 503
    with pytest.raises(RetryableError):
        world.prepare()
    hub.broken_with = None
    assert world.prepare().outcome == "Succeeded"


def test_progress_counts_the_tokenised_rows(world: World) -> None:
    messages: list[str] = []

    class RecordingReport(Report):
        def update(self, message: str | None = None, **fields: Any) -> None:
            super().update(message, **fields)
            messages.append(message or "")

    world.report = RecordingReport("prepare", 1)
    world.prepare()
    assert "tokenising 100/100" in messages
    assert any(line.startswith("downloading") for line in messages)


def test_pod_connects_to_no_address_of_a_user_that_is_the_pod_itself(
    world: World, hub: Hub
) -> None:
    code, result, log = run_as_pod(world, FINETUNE_SECRET_MODEL_HF_ENDPOINT=hub.url)
    assert code == ExitCode.USER_ERROR
    assert result.failure is not None
    assert result.failure.reason == "ForbiddenAddress"
    assert "model.uri hf://acme/tiny leads to 127.0.0.1" in result.failure.message
    assert hub.requests == 0
    assert "Traceback" not in log


def test_pod_ends_with_a_typed_failure(world: World, hub: Hub) -> None:
    world.rows("rows.jsonl", [{"text": "no known column"}])
    code, result, log = run_as_pod(world, HF_ENDPOINT=hub.url)
    assert code == ExitCode.USER_ERROR
    assert result.failure is not None
    assert (result.failure.reason, result.failure.line) == ("MissingColumn", 1)
    assert "Traceback" not in log


def test_template_file_next_to_the_tokenizer_is_used(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path / "model", template=None)
    (folder / "chat_template.jinja").write_text(CHATML)
    use_model(hub, folder)
    world.prepare()
    tokenizer = load_tokenizer(world.root / "cache" / COMMIT[:16])
    text = tokenizer.decode(TokenStore.open(world.data / "eval").sequence(0).input_ids)
    assert text.startswith("<|im_start|>user\n")


def test_data_is_synced_before_it_gets_its_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    named: list[set[str]] = []
    fsync, rename = os.fsync, Path.rename

    def record_sync(descriptor: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def record_rename(path: Path, target: Path) -> Path:
        files = {str(each) for each in path.rglob("*") if each.is_file()}
        if not target.name.startswith("."):
            named.append(files - synced)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", record_rename)
    world.prepare()
    assert str(world.root / "job" / ".prepare-1" / "data" / "train" / "tokens.npy") in synced
    assert len(named) >= 2, "the model and the data"
    assert not set().union(*named), "renamed before it was synced"
