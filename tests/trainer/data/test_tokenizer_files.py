"""The tokenizer that the files of a model describe, and texts that it encodes and decodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.round_trip import check_round_trip
from finetune_trainer.data.samples import MessagesSample
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.data.tokenizer_files import TEST_TEXTS, survives_round_trip
from finetune_trainer.data.turns import Turn
from finetune_trainer.runtime.errors import UserError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.trainer.tiny import CHATML, tiny_model, tiny_rows

TEXT = "  Spaces, ümlauts\n\n\tand 1234 digits 🙂"


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: each for name, each in value.items() if each is not None}))


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("kind", "class_name"),
    [
        ("llama", "LlamaTokenizerFast"),
        ("llama", "LlamaTokenizer"),
        ("mistral", "LlamaTokenizerFast"),
        ("gemma", "GemmaTokenizerFast"),
        ("qwen2", "Qwen2Tokenizer"),
        ("gpt2", "GPT2TokenizerFast"),
        ("llama", "PreTrainedTokenizerFast"),
        ("llama", None),
    ],
)
def test_tokenizer_json_is_used_whichever_class_is_named(
    tmp_path: Path, kind: str, class_name: str | None
) -> None:
    folder = tiny_model(tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", tokenizer_class=class_name)
    edit_json(folder / "config.json", model_type=kind)
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
    tokenizer = load_tokenizer(folder)
    tokenizer.save_pretrained(tmp_path / "exported")
    exported = load_tokenizer(tmp_path / "exported")
    for each in (tokenizer, exported):
        assert ids(each, TEXT) == expected
        assert each.decode(expected, clean_up_tokenization_spaces=False) == TEXT
        assert each.eos_token == "<|im_end|>"
        assert each.chat_template == CHATML


def test_special_tokens_of_the_class_alone_are_kept(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"][2]["content"] = "</s>"
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["</s>"] = vocabulary.pop("<|im_end|>")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "LlamaTokenizerFast", "eos_token": None, "chat_template": None}
    edit_json(folder / "tokenizer_config.json", **settings)
    assert load_tokenizer(folder).eos_token == "</s>"


def sentencepiece_model(folder: Path, **options: Any) -> Path:
    """A model folder whose tokenizer is a SentencePiece model only."""
    from sentencepiece import SentencePieceTrainer

    tiny_model(folder)
    texts = [text for row in tiny_rows(400) for text in row.values()]
    options = {"model_type": "bpe", "vocab_size": 400, "byte_fallback": True, **options}
    with (folder / "tokenizer.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter([*texts, "if x:\n    return  # two  spaces"] * 2),
            model_writer=file,
            minloglevel=2,
            **options,
        )
    (folder / "tokenizer.json").unlink()
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": None,
        "unk_token": "<unk>",
    }
    edit_json(folder / "tokenizer_config.json", **settings)
    return folder


LOSSLESS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize(
    "options",
    [
        LOSSLESS,
        {"normalization_rule_name": "identity"},
        {**LOSSLESS, "add_dummy_prefix": False},
    ],
    ids=["lossless", "no-extra-spaces", "no-prefix"],
)
def test_a_sentencepiece_model_gives_the_pieces_of_its_own_library(
    tmp_path: Path, options: dict[str, Any], kind: str
) -> None:
    from sentencepiece import SentencePieceProcessor

    folder = sentencepiece_model(tmp_path / "model", **options)
    edit_json(folder / "config.json", model_type=kind)
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = load_tokenizer(folder)
    tokenizer.save_pretrained(tmp_path / "exported")
    for each in (tokenizer, load_tokenizer(tmp_path / "exported")):
        for text in (*TEST_TEXTS, *(row["completion"] for row in tiny_rows(50, seed=9))):
            assert ids(each, text) == processor.encode(text)
        assert each.eos_token_id == processor.eos_id()


def test_a_sentencepiece_model_that_merges_cannot_express_is_refused(tmp_path: Path) -> None:
    # SentencePiece takes the longest of these pieces first, which merges cannot express.
    pieces = ["two spaces", "paces, a"]
    folder = sentencepiece_model(tmp_path / "model", **LOSSLESS, user_defined_symbols=pieces)
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    assert caught.value.failure.reason == "UnsupportedModel"
    assert "tokenises differently from tokenizer.model" in caught.value.failure.message
    assert "tokenizer.json" in caught.value.failure.remedy


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.model", b"IQ== 0\nIg== 1\nIw== 2\n", "tiktoken"),
        ("tekken.json", b"{}", "tekken.json"),
        ("qwen.tiktoken", b"IQ== 0\n", "qwen.tiktoken"),
        ("tiktoken.model", b"IQ== 0\n", "tiktoken.model"),
    ],
)
def test_a_format_that_cannot_be_read_is_refused_by_its_name(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    folder = tiny_model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    assert caught.value.failure.reason == "UnsupportedModel"
    assert words in caught.value.failure.message
    assert "tokenizer.json" in caught.value.failure.remedy


def test_a_template_in_chat_template_json_is_the_models(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", template=None)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    assert load_tokenizer(folder).chat_template == CHATML
    (folder / "chat_template.json").write_text("[]")
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    assert caught.value.failure.reason == "BadChatTemplate"


def sample(*texts: str) -> MessagesSample:
    turns = [Turn("user", "?"), *(Turn("assistant", text) for text in texts)]
    return MessagesSample(tuple(turns), file="rows.jsonl", line=7)


def plain_tokenizer(backend: Tokenizer) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<unk>")


def characters(*steps: Any) -> Tokenizer:
    """A vocabulary of ASCII characters; spaces are pieces of their own."""
    pieces = ["<unk>", *(chr(code) for code in range(33, 127)), "▁"]
    backend = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return backend


@pytest.mark.parametrize(
    ("steps", "text", "words"),
    [
        ([normalizers.Lowercase()], "An Answer", "no capital letters"),
        ([normalizers.Replace(" ", "")], "an answer", "white space is lost"),
        ([], "größe", "<unk> replaces"),
        ([normalizers.StripAccents()], "e\u0301t", "becomes"),
    ],
)
def test_data_that_decodes_differently_is_refused_with_its_line(
    steps: list[Any], text: str, words: str
) -> None:
    tokenizer = plain_tokenizer(characters(*steps))
    with pytest.raises(UserError) as caught:
        check_round_trip(tokenizer, [sample("fine"), sample(text)])
    failure = caught.value.failure
    assert failure.reason == "UnsupportedModel"
    assert words in failure.message
    assert (failure.file, failure.line) == ("rows.jsonl", 7)


def test_a_normalised_text_is_accepted(tiny_model_folder: Path) -> None:
    composed = plain_tokenizer(characters(normalizers.NFKC(), normalizers.Prepend(" ")))
    assert survives_round_trip(composed, "\uff21 x")
    tokenizer = load_tokenizer(tiny_model_folder)
    check_round_trip(tokenizer, [sample(*TEST_TEXTS, TEXT, "<|im_end|> in a text")])


def test_leading_spaces_may_be_lost_and_indentation_may_not(tmp_path: Path) -> None:
    lossless = load_tokenizer(sentencepiece_model(tmp_path / "lossless", **LOSSLESS))
    check_round_trip(lossless, [sample("   indented", "if x:\n    return  # two  spaces")])
    lossy = load_tokenizer(sentencepiece_model(tmp_path / "lossy"))
    check_round_trip(lossy, [sample(" one space")])
    with pytest.raises(UserError):
        check_round_trip(lossy, [sample("if x:\n    return")])


def test_bytes_under_a_pre_tokenizer_of_words_decode_differently() -> None:
    backend = characters()
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert not survives_round_trip(plain_tokenizer(backend), "two words")


def test_a_tokenizer_that_splits_the_tokens_of_templates_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", split_special_tokens=True)
    with pytest.raises(UserError, match="split_special_tokens"):
        load_tokenizer(folder)


def test_a_length_of_the_tokenizer_that_is_no_number_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", model_max_length="512")
    with pytest.raises(UserError, match="has model_max_length '512'"):
        load_tokenizer(folder)


def test_an_empty_token_ends_no_sequence(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", eos_token="")
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load_tokenizer(folder)
