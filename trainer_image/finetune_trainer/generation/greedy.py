"""Greedy answers, with the model's certainty of each token.

The margin of a token is the difference between the two highest logits, in nats. Two programs that
run the same weights differ by rounding, which can change an answer only where a margin is small. So
the margins show which answer another server must reproduce exactly.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.data.message_forms import NO_CONTEXT, ChatContext, from_messages
from finetune_trainer.data.rendering import ChatRenderer
from finetune_trainer.data.tokenizer import decode_tokens, find_end_of_turn
from finetune_trainer.generation.padding import pad_left

BATCH_SIZE = 32
TOKENS_PER_BATCH = 65536
"""Most tokens of a batch with its answers: prompts with examples may be as long as the context."""


@dataclass(frozen=True)
class Answer:
    """The answer of a model to one prompt."""

    tokens: list[int]
    """Generated tokens without the one that ends the turn."""
    margins: list[float]
    """One for each token, in nats."""
    text: str
    """Decoded, without special tokens."""


class MarginRecorder:
    """A logits processor that records the margins of every step and changes no logits."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []
        """One for each step, fp32 [batch]."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """transformers calls this with scores [batch, vocabulary]."""
        best, second = scores.float().topk(2, dim=-1).values.unbind(-1)  # [batch] each
        self.steps.append((best - second).cpu())
        return scores


def find_end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a turn: the model's own or the tokenizer's, and the chat template's.

    A base model that was trained with a chat template ends its turns as the template does.
    """
    own = model.generation_config.eos_token_id or tokenizer.eos_token_id
    listed = [own] if isinstance(own, int) else list(own or [])
    return list(dict.fromkeys([*listed, find_end_of_turn(tokenizer)]))


def tokenize_messages(
    tokenizer: Any, messages: Sequence[Any], context: ChatContext = NO_CONTEXT
) -> list[int]:
    """The tokens that a server of the OpenAI API makes of messages, with the start of an answer."""
    turns = from_messages(messages)
    chat = ChatRenderer(tokenizer).find_chat(turns, context)
    text = chat.render(turns, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    report_done: Callable[[int], None],
) -> list[Answer]:
    """Greedy answers to tokenised prompts, in their order.

    Prompts of similar length share a batch, padded on the left. The generation settings in the
    model's folder are not used: evaluation compares models, not settings.
    """
    from transformers import GenerationConfig

    end_tokens = find_end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end_tokens or [0])[0]
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end_tokens, pad_token_id=pad
    )
    original_config, model.generation_config = model.generation_config, config
    text = model.config.get_text_config()
    used_cache, text.use_cache = text.use_cache, True
    answers: dict[int, Answer] = {}
    for chosen in batch_prompts([len(prompt) for prompt in prompts], max_new_tokens):
        ids, mask = pad_left([prompts[index] for index in chosen], pad, model.device)
        recorder = MarginRecorder()
        with torch.inference_mode():
            sequences = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=[recorder],
            )
        generated = sequences[:, ids.shape[1] :].tolist()  # [batch, steps]
        margins = torch.stack(recorder.steps, dim=1).tolist()  # [batch, steps]
        for index, tokens, each in zip(chosen, generated, margins, strict=True):
            answers[index] = cut_at_end_token(tokenizer, tokens, each, end_tokens)
        report_done(len(answers))
    model.generation_config, text.use_cache = original_config, used_cache
    return [answers[index] for index in range(len(prompts))]


def batch_prompts(lengths: Sequence[int], max_new_tokens: int) -> Iterator[list[int]]:
    """The indices of prompts that are answered together, the shortest first."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        tokens = (len(batch) + 1) * (lengths[index] + max_new_tokens)
        if batch and (len(batch) == BATCH_SIZE or tokens > TOKENS_PER_BATCH):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def cut_at_end_token(
    tokenizer: Any, tokens: list[int], margins: list[float], end_tokens: list[int]
) -> Answer:
    """The answer up to the token that ends the turn."""
    length = next((i for i, token in enumerate(tokens) if token in end_tokens), len(tokens))
    kept = tokens[:length]
    return Answer(kept, margins[:length], decode_tokens(tokenizer, kept))
