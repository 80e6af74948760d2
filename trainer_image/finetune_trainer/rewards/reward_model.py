"""Learnt rewards: a frozen sequence classifier with one output that scores whole conversations.

As in transformers, its own tokenizer and chat template render the conversation, and the score is
that of the last token that is not padding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetune_api.finetunejob import GRPO
from finetune_api.run_config import RunConfig
from numpy.typing import NDArray

from finetune_trainer.data.length_batches import group_by_length
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.rewards.reward_functions import Completion
from finetune_trainer.sources.model_facts import local_config
from finetune_trainer.sources.model_files import CONFIG, not_a_reward_model

TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 32768}


class RewardModel:
    """Scores conversations; every process that scores completions loads one."""

    def __init__(
        self, folder: Path, device: torch.device, context_length: int, date: str | None = None
    ) -> None:
        """`context_length` is the model's longest sequence in tokens, `date` the one that its chat
        template prints, if it prints one."""
        self._tokenizer = load_tokenizer(folder, date=date)
        self._model = load_classifier(folder, device)
        self._device = device
        self._context_length = context_length

    def score(self, completions: Sequence[Completion]) -> NDArray[np.float64]:
        """Scores, float64 [completions]; a conversation that is too long loses its beginning."""
        ids = [self._tokenize(completion) for completion in completions]
        scores = np.zeros(len(ids))  # [completions]
        for members in group_by_length([*map(len, ids)], TOKENS_PER_BATCH[self._device.type]):
            scores[members] = self._score_batch([ids[index] for index in members])
        return scores

    def _tokenize(self, completion: Completion) -> list[int]:
        messages = [*completion.messages, {"role": "assistant", "content": completion.text}]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[-self._context_length :]

    def _score_batch(self, ids: Sequence[list[int]]) -> NDArray[np.float64]:
        pad = self._model.config.get_text_config().pad_token_id
        tokens = np.full((len(ids), max(map(len, ids))), pad, dtype=np.int64)  # [batch, longest]
        mask = np.zeros_like(tokens)
        for index, each in enumerate(ids):
            tokens[index, : len(each)] = each
            mask[index, : len(each)] = 1
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.from_numpy(tokens).to(self._device),
                attention_mask=torch.from_numpy(mask).to(self._device),
            ).logits
        return np.asarray(logits[:, 0].double().cpu())  # [batch, 1] -> [batch]


def load_classifier(folder: Path, device: torch.device) -> Any:
    """The frozen model, in bf16 on a GPU and fp32 on a CPU.

    Raises UserError NotARewardModel where it does not have one trained output.
    """
    from transformers import AutoModelForSequenceClassification

    config = local_config(folder)
    architectures = config.architectures or ["no architecture"]
    if config.num_labels != 1 or "SequenceClassification" not in architectures[0]:
        why = f"it is {architectures[0]} with {config.num_labels} outputs"
        raise not_a_reward_model("grpo.rewardModel", why, file=str(folder / CONFIG))
    model, loading_info = AutoModelForSequenceClassification.from_pretrained(
        folder,
        config=config,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        device_map={"": device},
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if missing := sorted(loading_info["missing_keys"]):
        why = f"its files lack {', '.join(missing[:5])}"
        raise not_a_reward_model("grpo.rewardModel", why, file=str(folder / CONFIG))
    text = model.config.get_text_config()
    if text.pad_token_id is None:
        # Any token is suitable with which no conversation ends.
        text.pad_token_id = 0 if text.eos_token_id != 0 else 1
    return model.eval().requires_grad_(requires_grad=False)


def load_reward_model(run: RunConfig, settings: GRPO, device: torch.device) -> RewardModel | None:
    """The job's reward model; None where it names none.

    Its chat template prints the date of prepare, so that rewards are the same on another day.
    """
    if settings.reward_model is None:
        return None
    facts = run.require_reward()
    folder = Path(run.paths.reward_cache) / facts.folder
    return RewardModel(folder, device, facts.context_length, run.data.date if run.data else None)
