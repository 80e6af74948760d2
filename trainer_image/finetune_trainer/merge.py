"""The tuned model as one set of weights, the same for the judge and for the world.

Evaluation must judge exactly the weights that export writes. So both come through here: the
update is added in fp32 and rounded once to the number format in which the base was saved,
whatever format the model computes in afterwards.
"""

import json
from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import RunConfig

from finetune_trainer.checkpoint import describe
from finetune_trainer.methods import load_model, saved_dtype
from finetune_trainer.stage import RetryableError


def base_folder(run: RunConfig) -> Path:
    """The snapshot of the base model."""
    assert run.model is not None
    return Path(run.paths.model_cache) / run.model.folder


def tuned_model(run: RunConfig, dtype: torch.dtype, base: Any = None, device: Any = "cpu") -> Any:
    """The tuned model in `dtype`; its weights are exact in the format of the saved base.

    A `base` that is loaded already is used up: changed in place with LoRA, else emptied, because
    two models may be more than the device holds. Raises RetryableError when
    the files in output/ are not those that training wrote.
    """
    output = Path(run.paths.job) / "output"
    verify(output)
    saved = saved_dtype(base_folder(run))
    if FineTuneJobSpec.model_validate(run.spec).method.type == "Full":
        for weight in base.parameters() if base is not None else ():
            weight.data = weight.data.new_empty(0)
        return load_model(output, saved, device=device).to(dtype)
    model = base if base is not None else load_model(base_folder(run), dtype, device=device)
    return merge_adapter(model, output, saved)


def verify(output: Path) -> None:
    """Compare the trained weights with the list that training left beside them."""
    listed = output / "files.json"
    if not listed.is_file():
        raise RetryableError(
            "NoTrainedWeights", "Training left no weights behind.", file=str(listed)
        )
    wanted = json.loads(listed.read_text())["files"]
    found = {name: facts for name, facts in describe(output).items() if name != listed.name}
    if found != wanted:
        wrong = sorted(name for name in wanted if found.get(name) != wanted[name])
        raise RetryableError(
            "TrainedWeightsChanged",
            f"The trained weights are not those that training wrote: {', '.join(wrong)}.",
            "Run the job again; check the workspace's storage.",
            file=str(output),
        )


def merge_adapter(model: Any, adapter: Path, saved: torch.dtype) -> Any:
    """Add alpha / rank * B A to every adapted weight (Hu et al. 2021, section 4.1)."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    adapted = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=True)
    with torch.no_grad():
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                weight = module.get_base_layer().weight
                total = weight.float() + module.get_delta_weight("default").float()
                weight.copy_(total.to(saved))
    return adapted.unload()
