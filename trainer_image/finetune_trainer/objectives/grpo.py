"""GRPO: the policy writes several answers to each prompt and learns from how they compare.

A step samples batchSize answers from the current weights, rewards them, and turns the rewards of
each prompt's answers into advantages. `updates` steps in a row learn from the same answers. Source:
Shao et al. 2024 (arXiv 2402.03300, section 4.1).
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
from finetune_trainer.rewards.functions import Completion
from finetune_trainer.rewards.scorer import RewardScorer, read_prompts
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.strategies import TrainingStrategy

log = logging.getLogger("finetune")

SHARDED = ("ZeRO3", "FSDP")
"""Strategies whose ranks hold one model together, so that each forward pass needs all of them."""


class GRPOObjective:
    """The clipped policy gradient of sampled answers."""

    def __init__(self, model: Any, setting: ObjectiveContext) -> None:
        settings = setting.spec.grpo
        assert settings is not None
        self._setting, self._settings = setting, settings
        data = setting.job / "data"
        self._prompts = TokenStore.open(data / "train")
        self._asked = read_prompts(data / "train.jsonl")
        self._tokenizer = load_job_tokenizer(setting.run)
        self._policy = TokenLogpsHook(model, settings.temperature, setting.device)
        self._judges = RewardScorer(setting.run, settings, setting.device)
        self._engine: TrainingStrategy | None = None
        self._ends: tuple[int, ...] = ()
        self._rollout: Rollout | None = None
        self._weight = self._trained = 1
        self.MEASURES: tuple[str, ...] = (
            "reward",
            "reward_std",
            "frac_reward_zero_std",
            "completions/mean_length",
            "completions/clipped_ratio",
            *(f"rewards/{name}/mean" for name in self._judges.names),
            *TOKEN_METRICS,
        )
        self._tally = torch.zeros(len(TOKEN_METRICS), dtype=torch.float64)

    def begin(self, engine: TrainingStrategy) -> None:
        """Remember where answers are sampled; raise UserError where one would not fit."""
        self._engine = engine
        # Under FSDP the other ranks have made their model without its folder.
        self._ends = collectives.broadcast_from_rank_zero(tuple(find_end_tokens(engine.unwrapped_model, self._tokenizer)))
        context = self._setting.run.model.context_length if self._setting.run.model else 1 << 30
        longest = int(self._prompts.sequence_lengths.max()) + self._settings.max_new_tokens
        if longest > context:
            raise UserError(
                "ContextTooLong",
                f"The longest prompt and grpo.maxNewTokens are {longest} tokens, and the model's "
                f"context is {context}.",
                "Lower grpo.maxNewTokens, or shorten the prompts.",
            )

    def share(self, step: int) -> RankBatch:
        """This rank's answers of a step. A collective that samples them where it must."""
        first = step - (step - 1) % self._settings.updates
        if self._rollout is None or self._rollout.step != first:
            self._rollout = (self._kept(first) if step > first else None) or self._sampled(first)
        answers = self._rollout.answers
        dealt = sampler.split_into_micro_batches(answers, self._setting.plan.micro_batch_size)
        self._trained = sum(len(each.answer) for each in answers)
        self._weight = self._weight_of(answers)
        batches = [collate_completions(members, self._setting.flatten) for members in dealt]
        return RankBatch(batches, self._weight, sum(each.tokens for each in answers))

    def _weight_of(self, answers: Sequence[SampledCompletion]) -> int:
        match self._settings.loss:
            case "grpo":
                return len(answers)
            case "bnpo":
                size = self._setting.plan.micro_batch_size
                world = dist.get_world_size()
                return sum(-(-len(answers[rank::world]) // size) for rank in range(world))
            case "dr_grpo":
                return len(answers) * self._settings.max_new_tokens
            case "dapo":
                return self._trained

    def held_out(self) -> RankBatch:
        """Nothing: answers are judged by their reward, in the evaluate stage."""
        raise NotImplementedError("GRPO has no held-out loss")

    def losses(self, model: Any, batch: CompletionBatch) -> LossTerms:
        """One loss for every answer (grpo), forward pass (bnpo) or token (dr_grpo, dapo)."""
        found = self._policy(model, batch.rows)
        each = policy_losses(found.logps, batch, self._settings.epsilon, self._settings.beta)
        self._tally = self._tally.to(each.device) + sum_token_metrics(
            found, batch, self._settings.epsilon
        )
        owners = batch.rows.owners.to(each.device)
        return LossTerms(average_losses(each, owners, batch.answers, self._settings.loss))

    def measures(self) -> torch.Tensor:
        """Sums of MEASURES; what every rank knows of all answers, rank 0 tells."""
        assert self._rollout is not None
        known = [self._rollout.measures[name] for name in self.MEASURES[: -len(TOKEN_METRICS)]]
        here = torch.tensor(known, dtype=torch.float64) * self._weight * (dist.get_rank() == 0)
        tokens = self._tally.cpu() * (self._weight / self._trained)
        self._tally = torch.zeros_like(self._tally)
        return torch.cat([here, tokens])

    def remove(self) -> None:
        """Give the model its ordinary output head back."""
        self._policy.remove()

    def _kept(self, first: int) -> Rollout | None:
        """The answers that a stopped run was learning from."""
        setting = self._setting
        found = rollouts.load_rollout(setting.job, setting.run.attempt, first) if _is_first() else None
        kept: Rollout | None = collectives.broadcast_from_rank_zero(found)
        if kept is None:
            log.warning("sampled again in the middle of its updates: step %d", first)
        return kept

    def _sampled(self, first: int) -> Rollout:
        """New answers with everything that is learnt from them."""
        settings, setting = self._settings, self._setting
        assert self._engine is not None
        with self._engine.accumulate(is_last=False), evaluation_mode(self._engine.model):
            answers = self._answers(first)
            totals = self._judges.totals([each.rewards for each in answers])
            if not np.isfinite(totals).all():
                raise UserError(
                    "RewardNotFinite",
                    f"A reward of step {first} is not a number.",
                    "Check the reward model: it may need fp32, or not belong to its tokenizer.",
                )
            gains = rollouts.compute_advantages(totals, settings.generations, settings.scale_rewards)
            measures = rollouts.compute_metrics(
                answers, totals, self._judges.names, settings.generations
            )
            answers = [
                replace(each, advantage=float(gain))
                for each, gain in zip(answers, gains, strict=True)
            ]
            answers.sort(key=lambda each: -each.tokens)
            if settings.updates > 1:
                answers = self._with_logps(answers, "old")
            if settings.beta > 0:
                with disable_adapters(self._engine.unwrapped_model):
                    answers = self._with_logps(answers, "reference")
        found = Rollout(first, answers, measures)
        if settings.updates > 1 and _is_first():
            attempt = Attempt(setting.job, setting.run.attempt)
            rollouts.save_rollout(found, attempt, settings.updates)
        return found

    def _answers(self, first: int) -> list[SampledCompletion]:
        """All ranks' answers with their rewards, those to one prompt in a row."""
        settings, seed = self._settings, self._setting.spec.training.seed
        number = (first - 1) // settings.updates + 1
        asked = sampler.step_indices(
            self._prompts.sequence_count,
            number,
            self._setting.plan.batch_size // settings.generations,
            seed,
        )
        owners = [prompt for prompt in asked for _ in range(settings.generations)]
        world, rank = dist.get_world_size(), dist.get_rank()
        part = -(-len(owners) // world)
        mine = range(rank * part, min((rank + 1) * part, len(owners)))
        written = self._written(owners, mine, part, first)
        rewards = self._judges(
            [
                self._reply(owners[index], answer)
                for index, answer in zip(mine, written, strict=True)
            ]
        )
        told = collectives.all_gather(list(zip(written, rewards, strict=True)))
        everything = itertools.chain.from_iterable(told)
        return [
            SampledCompletion(self._prompts.sequence(owner).input_ids, answer, self._ended(answer), reward)
            for owner, (answer, reward) in zip(owners, everything, strict=True)
        ]

    def _written(
        self, owners: Sequence[int], mine: range, part: int, first: int
    ) -> list[sampling.Tokens]:
        """Sample this rank's answers, as many at once as their keys and values fit memory."""
        assert self._engine is not None
        settings, setting, model = self._settings, self._setting, self._engine.unwrapped_model
        how = sampling.SamplingConfig(
            temperature=settings.temperature,
            most=settings.max_new_tokens,
            ends=self._ends,
            together=setting.plan.strategy in SHARDED,
        )
        prompts = {owner: self._prompts.sequence(owner).input_ids for owner in set(owners)}
        longest = max(map(len, prompts.values())) + settings.max_new_tokens
        size = sampling.max_concurrent_answers(model.config, longest, setting.device)
        found: list[sampling.Tokens] = []
        for start in range(0, part, size):
            # A rank without answers of its own takes part with one that nobody looks at.
            chosen = list(mine[start : start + size]) or [0]
            asked = sorted({owners[index] for index in chosen})
            uniform = [
                sampling.draw_uniforms(setting.spec.training.seed, first, index, how.most)
                for index in chosen
            ]
            with uncompiled(setting.spec.training.compile):
                found += sampling.sample_answers(
                    model,
                    [prompts[owner] for owner in asked],
                    [asked.index(owners[index]) for index in chosen],
                    uniform,
                    how,
                    setting.device,
                )
        return found[: len(mine)]

    def _ended(self, answer: sampling.Tokens) -> bool:
        return int(answer[-1]) in self._ends

    def _reply(self, prompt: int, answer: sampling.Tokens) -> Completion:
        asked, ended = self._asked[prompt], self._ended(answer)
        return asked.reply(self._tokenizer, answer.tolist()[: -1 if ended else None], ended)

    def _with_logps(self, answers: list[SampledCompletion], name: str) -> list[SampledCompletion]:
        """The answers with the model's log-probabilities as `name`, computed by all ranks."""
        assert self._engine is not None
        size, flatten = self._setting.plan.micro_batch_size, self._setting.flatten
        here: list[Floats] = []
        for members in sampler.split_into_micro_batches(answers, size):
            rows = collate([each.sequence() for each in members], flatten)
            logps = self._policy(self._engine.unwrapped_model, rows).logps.cpu().numpy()
            borders = np.cumsum([len(each.answer) for each in members])[:-1]
            here += np.split(logps, borders) if members else []
        gathered = collectives.all_gather(here)
        world = dist.get_world_size()
        return [
            replace(each, **{name: gathered[index % world][index // world]})
            for index, each in enumerate(answers)
        ]


def uncompiled(compiled: bool) -> contextlib.AbstractContextManager[Any]:
    """Without compiled blocks: they would be compiled anew for every length of the cache."""
    if not compiled:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _is_first() -> bool:
    return bool(dist.get_rank() == 0)
