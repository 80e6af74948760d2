"""Optimizers: weight decay, clipping, sizes of states, and losses of real runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.finetunejob import Method, Training
from finetune_trainer.methods import load_base_model
from finetune_trainer.methods.adapters import add_adapters
from finetune_trainer.strategies import StrategyConfig
from finetune_trainer.strategies.optimizers import clip_and_update, make_optimizer, parameter_groups

from tests.trainer import pool
from tests.trainer.drive_training import drive
from tests.trainer.jobs import losses, make_run, to_json, write_data
from tests.trainer.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("default")

OPTIMIZERS = ("AdamW", "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "Adafactor")


def config_for(optimizer: str = "AdamW", **training: Any) -> StrategyConfig:
    return StrategyConfig(
        strategy="DDP",
        method=Method(type="Full"),
        training=Training.model_validate({"optimizer": optimizer, **training}),
        device=torch.device("cpu"),
        learning_rate=0.1,
        micro_batch_size=1,
        offload=False,
        autocast=False,
    )


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.LayerNorm(128))


def test_matrices_decay_and_vectors_do_not() -> None:
    model = small_model()
    groups = parameter_groups(model, Training(weight_decay=0.3))
    found = {
        (group["weight_decay"], *map(tuple, [p.shape for p in group["params"]])) for group in groups
    }
    assert found == {(0.3, (128, 64)), (0.0, (128,), (128,), (128,))}


def test_ia3_vectors_which_start_at_one_do_not_decay(tiny_model_folder: Path) -> None:
    method = Method.model_validate({"type": "IA3"})
    model = add_adapters(load_base_model(tiny_model_folder, torch.float32), method, total_steps=1)
    groups = parameter_groups(model, Training(weight_decay=0.3))
    assert [group["weight_decay"] for group in groups] == [0.0]
    assert groups[0]["params"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_decay_is_decoupled_from_the_gradient(optimizer: str) -> None:
    # Without any gradient a step only multiplies matrices by 1 - rate * decay.
    model = small_model()
    before = [weight.detach().clone() for weight in model.parameters()]
    built = make_optimizer(model, config_for(optimizer, weightDecay=0.5))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    built.step()
    for old, new in zip(before, model.parameters(), strict=True):
        factor = 1 - 0.1 * 0.5 if old.dim() > 1 else 1.0
        torch.testing.assert_close(new.detach(), old * factor)


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "Adafactor"])
@pytest.mark.parametrize(
    ("settings", "beta1", "beta2", "epsilon"),
    [
        ({}, 0.9, 0.999, 1e-8),
        ({"adamBeta1": 0.5, "adamBeta2": 0.7, "adamEpsilon": 0.01}, 0.5, 0.7, 0.01),
        ({"adamBeta1": 0.0}, 0.0, 0.999, 1e-8),
    ],
)
def test_adamw_updates_by_its_formula(
    optimizer: str, settings: dict[str, float], beta1: float, beta2: float, epsilon: float
) -> None:
    weight = torch.nn.Linear(8, 8, bias=False)
    expected = weight.weight.detach().double()
    built = make_optimizer(weight, config_for(optimizer, **settings))
    mean, square = torch.zeros(8, 8).double(), torch.zeros(8, 8).double()
    for step in range(1, 4):
        gradient = torch.randn(8, 8, generator=torch.Generator().manual_seed(step))
        weight.weight.grad = gradient.clone()
        built.step()
        # Loshchilov and Hutter 2019, algorithm 2.
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        root = (square / (1 - beta2**step)).sqrt()
        expected = expected - 0.1 * mean / (1 - beta1**step) / (root + epsilon)
    torch.testing.assert_close(weight.weight.detach().double(), expected, rtol=1e-4, atol=1e-5)


def state_bytes(optimizer: str) -> int:
    """Bytes of optimizer state for one weight of 512 x 512."""
    weight = torch.nn.Linear(512, 512, bias=False)
    built = make_optimizer(weight, config_for(optimizer))
    weight.weight.grad = torch.randn(512, 512)
    built.step()
    tensors = [v for v in built.state[weight.weight].values() if isinstance(v, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_optimizer_states_have_their_expected_sizes() -> None:
    weights = 512 * 512
    assert state_bytes("AdamW") == pytest.approx(8 * weights, rel=0.01)
    assert state_bytes("PagedAdamW") == pytest.approx(8 * weights, rel=0.01)
    for name in ("AdamW8bit", "PagedAdamW8bit"):
        # A byte for each number, a scale for every block of 256.
        assert state_bytes(name) == pytest.approx(2 * weights * (1 + 4 / 256), rel=0.01)
    assert state_bytes("Adafactor") < 0.01 * weights * 8


def test_gradients_are_clipped_to_their_global_norm() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    weights[0].grad, weights[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    plain = torch.optim.SGD(weights, lr=1.0)
    assert clip_and_update(weights, plain, 2.5, 0.5, None) == pytest.approx(5)
    # Half the gradient, times the learning rate of the step, not the optimizer's initial one.
    assert [float(weight.detach()) for weight in weights] == pytest.approx([-0.75, -1.0], abs=1e-5)
    assert weights[0].grad is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("optimizers")
    model = tiny_model(root / "models" / "tiny")
    cases = []
    for name in OPTIMIZERS:
        for method in ("LoRA", "Full"):
            job = root / f"{method}-{name}"
            write_data(job / "job" / "data", model)
            lora = {"dropout": 0.1} if method == "LoRA" else None
            how: dict[str, Any] = {"method": method, "lora": lora, "training": {"optimizer": name}}
            cases.append({"name": job.name, "run": to_json(make_run(job, model, **how))})
            stopped = root / f"{job.name}-stopped"
            write_data(stopped / "job" / "data", model)
            run = to_json(make_run(stopped, model, **how))
            cases.append({"name": stopped.name, "run": run, "stop_after": 3})
            run = to_json(make_run(stopped, model, attempt=2, **how))
            cases.append({"name": f"{job.name}-resumed", "run": run})
    path = root / "cases.json"
    path.write_text(json.dumps(cases))
    pool.run(drive, path, world=2, folder=root / "logs")
    return root


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_all_variants_of_adamw_have_similar_losses(trained: Path, method: str) -> None:
    plain = losses(trained / f"{method}-AdamW" / "job")
    assert plain[-1] < plain[0] - 0.3
    paged = losses(trained / f"{method}-PagedAdamW" / "job")
    assert paged == pytest.approx(plain, abs=2e-4)
    for name in ("AdamW8bit", "PagedAdamW8bit"):
        rounded = losses(trained / f"{method}-{name}" / "job")
        assert rounded != plain
        assert rounded == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_adafactor_lowers_the_loss(trained: Path, method: str) -> None:
    found = losses(trained / f"{method}-Adafactor" / "job")
    assert found[-1] < found[0] - 0.3


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_every_optimizer_resumes_bitwise(trained: Path, method: str, name: str) -> None:
    straight = losses(trained / f"{method}-{name}" / "job")
    stopped = trained / f"{method}-{name}-stopped" / "job"
    assert losses(stopped, 1) == straight[:3]
    assert losses(stopped, 2) == straight[3:]
