"""The peak learning rate of a job whose spec sets none."""

from finetune_api.finetunejob import FineTuneJobSpec

BY_METHOD = {
    "Full": 1e-5,
    "LoRA": 1e-4,
    "QLoRA": 1e-4,
    "DoRA": 1e-4,
    "AdaLoRA": 5e-4,
    "IA3": 3e-3,
    "Prefix": 1e-2,
}
"""The fewer parameters a method trains, the larger its step: ten times between Full and LoRA
(Biderman et al. 2024, arXiv 2405.09673), 5e-4 to 2e-3 for AdaLoRA (Zhang et al. 2023, arXiv
2303.10512), 3e-3 for IA3 (Liu et al. 2022, arXiv 2205.05638)."""
BY_OBJECTIVE = {
    "SFT": 1.0,
    "Completion": 1.0,
    "Reward": 1.0,
    "ORPO": 0.5,
    "DPO": 0.1,
    "KTO": 0.1,
    "GRPO": 0.1,
    "SimPO": 0.05,
}
"""Objectives that start from a model that already answers well take smaller steps: 1e-6 for Full
GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.2), 5e-7 to 5e-6 for Full DPO and KTO, 5e-6 to
8e-6 for Full ORPO, which trains on the answers too (Hong et al. 2024, arXiv 2403.07691), 3e-7 to
1e-6 for Full SimPO (Meng et al. 2024, arXiv 2405.14734)."""


def default_learning_rate(spec: FineTuneJobSpec) -> float:
    """Peak learning rate by method and objective, with two digits."""
    return float(f"{BY_METHOD[spec.method.type] * BY_OBJECTIVE[spec.objective]:.1e}")
