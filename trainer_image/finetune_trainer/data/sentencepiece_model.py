"""A SentencePiece model (tokenizer.model) as a fast tokenizer that gives the same pieces.

transformers 5 orders the merges of a BPE model by the ids of their pieces and not by their scores,
and some of its classes leave out the dummy prefix, so texts get other pieces than in the model's
training. The pieces of SentencePiece's own library are the right ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_SPACE = "▁"
_BPE = 2
"""TrainerSpec.ModelType of byte pair encoding."""


def read_sentencepiece(
    path: Path, candidates: Iterator[Any], plain: Callable[[], Any], texts: Sequence[str]
) -> Any:
    """The first tokenizer that gives the pieces of the model at `path` for every text, or None.

    `candidates` are tried first, then `plain()` with the model's own merges. Raises OSError
    or RuntimeError where the file is not a SentencePiece model.
    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(path))
    expected = [processor.encode(text, out_type=str) for text in texts]

    def agrees(tokenizer: Any) -> bool:
        return all(
            tokenizer.tokenize(text, add_special_tokens=False) == pieces
            for text, pieces in zip(texts, expected, strict=True)
        )

    for tokenizer in candidates:
        if agrees(tokenizer):
            return tokenizer
    tokenizer = plain()
    return tokenizer if _rebuild(tokenizer.backend_tokenizer, path) and agrees(tokenizer) else None


def _rebuild(backend: Any, path: Path) -> bool:
    """Give `backend` the vocabulary, merges and spaces of a BPE model; False for other models."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, decoders, models, normalizers

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(path.read_bytes())
    spec, spaces = proto.trainer_spec, proto.normalizer_spec
    if spec.model_type != _BPE:
        return False
    vocabulary = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    backend.model = models.BPE(
        vocab=vocabulary,
        merges=_merges([(piece.piece, piece.score) for piece in proto.pieces]),
        unk_token=proto.pieces[spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
    )
    steps: list[Any] = []
    if spaces.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spaces.precompiled_charsmap))
    if spaces.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" +"), " "))
    if spaces.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    backend.pre_tokenizer = None
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if spaces.add_dummy_prefix else []
    backend.decoder = decoders.Sequence([*parts, *strip])
    return True


def _merges(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, the piece with the highest score first."""
    numbers = {piece: number for number, (piece, _) in enumerate(pieces)}
    found = []
    for number, (piece, score) in enumerate(pieces):
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in numbers and right in numbers:
                found.append((-score, number, numbers[left], left, right))
    return [(left, right) for *_, left, right in sorted(found)]
