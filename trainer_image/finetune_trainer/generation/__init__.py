"""Answers of a model: greedy ones for evaluation, sampled ones for GRPO."""
