"""GRPO: the policy samples several completions of each prompt and learns from how they compare.

A step samples batchSize completions from the current weights, computes their rewards, and turns the
rewards of each prompt's completions into advantages. `updates` consecutive steps learn from the
same completions. Source: Shao et al. 2024 (arXiv 2402.03300, section 4.1).
"""

import contextlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from finetune_trainer.data import sampler
from finetune_trainer.data.token_store import TokenStore
from finetune_trainer.data.tokenizer import load_job_tokenizer
from finetune_trainer.distributed import collectives
from finetune_trainer.generation import sampling
from finetune_trainer.generation.greedy import find_end_tokens
from finetune_trainer.objectives import rollout as rollouts
from finetune_trainer.objectives.base import LossTerms, ObjectiveContext, RankBatch
from finetune_trainer.objectives.collate import collate
from finetune_trainer.objectives.policy_loss import (
    TOKEN_METRICS,
    CompletionBatch,
    average_losses,
    collate_completions,
    policy_losses,
    sum_token_metrics,
)
from finetune_trainer.objectives.rollout import Floats, Rollout, SampledCompletion
from finetune_trainer.objectives.sequence_logprobs import evaluation_mode
from finetune_trainer.objectives.token_logprobs import TokenLogpsHook, disable_adapters
from finetune_trainer.rewards.reward_functions import Completion
from finetune_trainer.rewards.scorer import RewardScorer, read_prompts
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.strategies import TrainingStrategy

log = logging.getLogger("finetune")

SHARDED_STRATEGIES = ("ZeRO3", "FSDP")
"""Strategies whose ranks hold one model together, so that each forward pass is a collective."""


class GRPOObjective:
    """The clipped policy gradient of sampled completions."""

    def __init__(self, model: Any, context: ObjectiveContext) -> None:
        settings = context.spec.grpo
        assert settings is not None
        self._context, self._settings = context, settings
        data = context.job / "data"
        self._prompts = TokenStore.open(data / "train")
        self._prompt_texts = read_prompts(data / "train.jsonl")
        self._tokenizer = load_job_tokenizer(context.run)
        self._compute_logps = TokenLogpsHook(model, settings.temperature, context.device)
        self._scorer = RewardScorer(context.run, settings, context.device)
        self._strategy: TrainingStrategy | None = None
        self._end_tokens: tuple[int, ...] = ()
        self._rollout: Rollout | None = None
        self._num_items_in_batch = self._completion_tokens = 1
        self.METRICS: tuple[str, ...] = (
            "reward",
            "reward_std",
            "frac_reward_zero_std",
            "completions/mean_length",
            "completions/clipped_ratio",
            *(f"rewards/{name}/mean" for name in self._scorer.names),
            *TOKEN_METRICS,
        )
        self._token_sums = torch.zeros(len(TOKEN_METRICS), dtype=torch.float64)

    def inspect_untrained_model(self, strategy: TrainingStrategy) -> None:
        """Keep the strategy for sampling; raise UserError if the longest prompt and completion
        exceed the model's context."""
        self._strategy = strategy
        # Under FSDP the other ranks built their model without the files of its folder.
        self._end_tokens = collectives.broadcast_from_rank_zero(
            tuple(find_end_tokens(strategy.unwrapped_model, self._tokenizer))
        )
        context = self._context.run.model.context_length if self._context.run.model else 1 << 30
        longest = int(self._prompts.sequence_lengths.max()) + self._settings.max_new_tokens
        if longest > context:
            raise UserError(
                "ContextTooLong",
                f"The longest prompt and grpo.maxNewTokens are {longest} tokens, and the model's "
                f"context is {context}.",
                "Lower grpo.maxNewTokens, or shorten the prompts.",
            )

    def make_rank_batch(self, step: int) -> RankBatch:
        """This rank's completions of a step; at the first step of a rollout they are sampled. A
        collective."""
        first = step - (step - 1) % self._settings.updates
        if self._rollout is None or self._rollout.step != first:
            stored = self._load_rollout(first) if step > first else None
            self._rollout = stored or self._sample_rollout(first)
        completions = self._rollout.completions
        size = self._context.plan.micro_batch_size
        self._completion_tokens = sum(len(each.completion_ids) for each in completions)
        self._num_items_in_batch = self._count_items_in_batch(completions)
        micro_batches = [
            collate_completions(members, self._context.flatten)
            for members in sampler.split_into_micro_batches(completions, size)
        ]
        return RankBatch(
            micro_batches, self._num_items_in_batch, sum(each.tokens for each in completions)
        )

    def _count_items_in_batch(self, completions: Sequence[SampledCompletion]) -> int:
        """The divisor of the losses of `average_losses`."""
        match self._settings.loss:
            case "grpo":
                return len(completions)
            case "bnpo":
                size = self._context.plan.micro_batch_size
                world_size = dist.get_world_size()
                return sum(
                    -(-len(completions[rank::world_size]) // size) for rank in range(world_size)
                )
            case "dr_grpo":
                return len(completions) * self._settings.max_new_tokens
            case "dapo":
                return self._completion_tokens

    def make_held_out_batch(self) -> RankBatch:
        """Not available: the evaluate stage measures rewards of held-out prompts instead."""
        raise NotImplementedError("GRPO has no held-out loss")

    def compute_losses(self, model: Any, micro_batch: CompletionBatch) -> LossTerms:
        """One loss for every completion (grpo), forward pass (bnpo) or token (dr_grpo, dapo)."""
        epsilon, beta = self._settings.epsilon, self._settings.beta
        computed = self._compute_logps(model, micro_batch.micro_batch)
        losses = policy_losses(computed.logps, micro_batch, epsilon, beta)
        token_sums = sum_token_metrics(computed, micro_batch, epsilon)
        self._token_sums = self._token_sums.to(losses.device) + token_sums
        index = micro_batch.micro_batch.sequence_index.to(losses.device)
        return LossTerms(
            average_losses(losses, index, micro_batch.completions, self._settings.loss)
        )

    def take_metrics(self) -> torch.Tensor:
        """Sums of METRICS. Every rank has the metrics of the rollout; only rank 0 adds them."""
        assert self._rollout is not None
        names = self.METRICS[: -len(TOKEN_METRICS)]
        values = [self._rollout.metrics[name] for name in names]
        is_rank_zero = dist.get_rank() == 0
        of_rollout = (
            torch.tensor(values, dtype=torch.float64) * self._num_items_in_batch * is_rank_zero
        )
        of_tokens = self._token_sums.cpu() * (self._num_items_in_batch / self._completion_tokens)
        self._token_sums = torch.zeros_like(self._token_sums)
        return torch.cat([of_rollout, of_tokens])

    def detach_from_model(self) -> None:
        self._compute_logps.detach_from_model()

    def _load_rollout(self, first: int) -> Rollout | None:
        """The stored rollout that a stopped run was learning from."""
        context, loaded = self._context, None
        if dist.get_rank() == 0:
            loaded = rollouts.load_rollout(context.job, context.run.attempt, first)
        rollout: Rollout | None = collectives.broadcast_from_rank_zero(loaded)
        if rollout is None:
            log.warning(
                "A stored rollout is missing, sampling again in the middle of its updates",
                extra={"step": first},
            )
        return rollout

    def _sample_rollout(self, first: int) -> Rollout:
        """New completions with advantages, old logps and reference logps. A collective."""
        settings, context = self._settings, self._context
        assert self._strategy is not None
        with (
            self._strategy.accumulate(is_last=False),
            evaluation_mode(self._strategy.model),
        ):
            completions = self._sample_completions(first)
            totals = self._scorer.sum_weighted([each.rewards for each in completions])
            if not np.isfinite(totals).all():
                raise UserError(
                    "RewardNotFinite",
                    f"A reward of step {first} is not a number.",
                    "Check the reward model: it may need fp32, or not belong to its tokenizer.",
                )
            advantages = rollouts.compute_advantages(
                totals, settings.generations, settings.scale_rewards
            )
            metrics = rollouts.compute_metrics(
                completions, totals, self._scorer.names, settings.generations
            )
            completions = [
                replace(completion, advantage=float(advantage))
                for completion, advantage in zip(completions, advantages, strict=True)
            ]
            completions.sort(key=lambda each: -each.tokens)
            if settings.updates > 1:
                completions = self._with_logps(completions, "old_logps")
            if settings.beta > 0:
                with disable_adapters(self._strategy.unwrapped_model):
                    completions = self._with_logps(completions, "reference_logps")
        rollout = Rollout(first, completions, metrics)
        if settings.updates > 1 and dist.get_rank() == 0:
            attempt = Attempt(context.job, context.run.attempt)
            rollouts.save_rollout(rollout, attempt, settings.updates)
        return rollout

    def _sample_completions(self, first: int) -> list[SampledCompletion]:
        """All ranks' completions with their rewards; those of one prompt are consecutive."""
        settings, seed = self._settings, self._context.spec.training.seed
        rollout_number = (first - 1) // settings.updates + 1
        prompts = sampler.step_indices(
            self._prompts.sequence_count,
            rollout_number,
            self._context.plan.batch_size // settings.generations,
            seed,
        )
        prompt_of = [prompt for prompt in prompts for _ in range(settings.generations)]
        world_size, rank = dist.get_world_size(), dist.get_rank()
        per_rank = -(-len(prompt_of) // world_size)
        mine = range(rank * per_rank, min((rank + 1) * per_rank, len(prompt_of)))
        sampled = self._sample_on_rank(prompt_of, mine, per_rank, first)
        rewards = self._scorer.score(
            [self._decode(prompt_of[index], ids) for index, ids in zip(mine, sampled, strict=True)]
        )
        gathered = collectives.all_gather(list(zip(sampled, rewards, strict=True)))
        return [
            SampledCompletion(
                self._prompts.sequence(prompt).input_ids, ids, self._has_ended(ids), of_completion
            )
            for prompt, (ids, of_completion) in zip(
                prompt_of, itertools.chain.from_iterable(gathered), strict=True
            )
        ]

    def _sample_on_rank(
        self, prompt_of: Sequence[int], mine: range, per_rank: int, first: int
    ) -> list[sampling.Tokens]:
        """The completions `mine`, as many at once as their keys and values fit into memory.

        `prompt_of` gives the prompt of each completion of the rollout.
        """
        assert self._strategy is not None
        settings, context = self._settings, self._context
        model = self._strategy.unwrapped_model
        config = sampling.SamplingConfig(
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            end_tokens=self._end_tokens,
            is_collective=context.plan.strategy in SHARDED_STRATEGIES,
        )
        prompt_ids = {prompt: self._prompts.sequence(prompt).input_ids for prompt in set(prompt_of)}
        longest = max(map(len, prompt_ids.values())) + settings.max_new_tokens
        size = sampling.max_concurrent_completions(model.config, longest, context.device)
        completions: list[sampling.Tokens] = []
        for start in range(0, per_rank, size):
            # A rank without completions left samples one that is dropped, because the forward
            # passes may be collectives.
            batch = list(mine[start : start + size]) or [0]
            prompts = sorted({prompt_of[index] for index in batch})
            uniforms = [
                sampling.draw_uniforms(
                    context.spec.training.seed, first, index, settings.max_new_tokens
                )
                for index in batch
            ]
            with suspend_compilation(context.spec.training.compile):
                completions += sampling.sample_completions(
                    model,
                    [prompt_ids[prompt] for prompt in prompts],
                    [prompts.index(prompt_of[index]) for index in batch],
                    uniforms,
                    config,
                    context.device,
                )
        return completions[: len(mine)]

    def _has_ended(self, ids: sampling.Tokens) -> bool:
        return int(ids[-1]) in self._end_tokens

    def _decode(self, prompt: int, ids: sampling.Tokens) -> Completion:
        """A completion as text for the reward functions, without its end token."""
        has_ended = self._has_ended(ids)
        text_ids = ids.tolist()[: -1 if has_ended else None]
        return self._prompt_texts[prompt].decode_completion(self._tokenizer, text_ids, has_ended)

    def _with_logps(
        self, completions: list[SampledCompletion], field: str
    ) -> list[SampledCompletion]:
        """The completions with the logps of the present model in `field`; all ranks compute."""
        assert self._strategy is not None
        size, flatten = self._context.plan.micro_batch_size, self._context.flatten
        on_rank: list[Floats] = []
        for members in sampler.split_into_micro_batches(completions, size):
            micro_batch = collate([each.sequence() for each in members], flatten)
            computed = self._compute_logps(self._strategy.unwrapped_model, micro_batch)
            borders = np.cumsum([len(each.completion_ids) for each in members])[:-1]
            on_rank += np.split(computed.logps.cpu().numpy(), borders) if members else []
        gathered = collectives.all_gather(on_rank)
        world_size = dist.get_world_size()
        return [
            replace(each, **{field: gathered[index % world_size][index // world_size]})
            for index, each in enumerate(completions)
        ]


def suspend_compilation(is_compiled: bool) -> contextlib.AbstractContextManager[Any]:
    """Run compiled blocks uncompiled: each length of the KV cache would compile them again."""
    if not is_compiled:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
