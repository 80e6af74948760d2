"""Greedy answers, with how sure the model was of each token.

The margin of a step is the difference between the two highest logits, in nats. Two programs
that run the same weights differ by rounding; only where a margin is small can that change an
answer. So margins tell which answer another server must reproduce word for word.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.data.tokenizer import find_end_of_turn

BATCH = 32


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt."""

    tokens: list[int]
    """Generated tokens without the one that ends the turn."""
    margins: list[float]
    """For each of them, in nats."""
    text: str
    """Decoded, without special tokens."""


class MarginRecorder:
    """Looks at the logits of every step of generation and leaves them as they are."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Called by transformers with scores [batch, vocabulary]."""
        best, second = scores.float().topk(2, dim=-1).values.unbind(-1)
        self.steps.append((best - second).cpu())
        return scores


def find_end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a turn: the model's own list, or the tokenizer's, and what training taught.

    A base model that was trained with a chat template ends its turns as the template does.
    """
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    listed = [ends] if isinstance(ends, int) else list(ends or [])
    return list(dict.fromkeys([*listed, find_end_of_turn(tokenizer)]))


def tokenize_messages(tokenizer: Any, messages: Sequence[Any]) -> list[int]:
    """A conversation as the tokens that a server of the OpenAI API would make of it."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    progress: Callable[[int], None],
) -> list[Answer]:
    """Greedy answers to tokenised prompts, in their order.

    Prompts of similar length share a batch, padded on the left. Sampling settings that the
    model ships are not used: what is compared is the model, not its settings.
    """
    from transformers import GenerationConfig

    ends = find_end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=pad
    )
    shipped, model.generation_config = model.generation_config, config
    cached, model.config.use_cache = model.config.use_cache, True
    answers: dict[int, Answer] = {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        ids, mask = pad_left([prompts[index] for index in chosen], pad)
        margins = MarginRecorder()
        with torch.inference_mode():
            whole = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=config,
                logits_processor=[margins],
            )
        generated = whole[:, ids.shape[1] :].tolist()
        sure = torch.stack(margins.steps, dim=1).tolist()
        for index, tokens, margin in zip(chosen, generated, sure, strict=True):
            answers[index] = cut_at_end_token(tokenizer, tokens, margin, ends)
        progress(len(answers))
    model.generation_config, model.config.use_cache = shipped, cached
    return [answers[index] for index in range(len(prompts))]


def pad_left(prompts: Sequence[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and attention mask, int64 [batch, longest]."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for index, prompt in enumerate(prompts):
        ids[index, longest - len(prompt) :] = torch.tensor(prompt)
        mask[index, longest - len(prompt) :] = 1
    return ids, mask


def cut_at_end_token(tokenizer: Any, tokens: list[int], margins: list[float], ends: list[int]) -> Answer:
    """The answer up to the token that ends the turn."""
    length = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    kept = tokens[:length]
    return Answer(kept, margins[:length], decode_tokens(tokenizer, kept))


def decode_tokens(tokenizer: Any, tokens: list[int]) -> str:
    """Text of generated tokens as servers stream it: no special tokens, spaces untouched."""
    text: str = tokenizer.decode(
        tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text
