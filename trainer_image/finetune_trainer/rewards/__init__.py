"""Rewards of completions: computed ones, a reward model's, and their sum."""
