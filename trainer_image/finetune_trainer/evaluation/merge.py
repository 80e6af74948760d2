"""The tuned model as one set of weights, the same for evaluation and for export.

Evaluation must measure exactly the weights that export writes, so both load them here: each
method's update is computed in fp32 and rounded once to the number format in which the base was
saved, whichever format the model computes in afterwards. A prefix is the exception: it does not
change weights and stays an adapter.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import Quantization
from finetune_api.run_config import RunConfig

from finetune_trainer.checkpointing.checkpoint_folder import hash_listed_files
from finetune_trainer.methods import (
    DTYPES,
    adapter_folder,
    add_token_rows,
    added_token_ids,
    load_base_model,
    require_decided,
    saved_dtype,
)
from finetune_trainer.methods.merged_weights import FourBitBase, four_bit_base, merge_layers
from finetune_trainer.methods.modules_to_save import TIED_WARNING, load_copies, restore_originals
from finetune_trainer.methods.partial_output import TRAINED_WEIGHTS, load_partial_output
from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.name_cache import wait_for_file


def base_folder(run: RunConfig) -> Path:
    """The snapshot of the base model."""
    return Path(run.paths.model_cache) / run.require_model().folder


def load_job_base_model(run: RunConfig, dtype: torch.dtype, device: Any = "cpu") -> Any:
    """The base model with the job's rope scaling and with embedding rows for its new tokens."""
    spec = run.spec
    seed = spec.training.seed if spec.objective == "Reward" else None
    folder, rope = base_folder(run), spec.model.rope
    model = load_base_model(folder, dtype, device=device, reward_head_seed=seed, rope=rope)
    add_token_rows(model, added_token_ids(run))
    return model


def load_initial_model(run: RunConfig, dtype: torch.dtype, device: Any = "cpu") -> Any:
    """The model that training starts from: the base model, with model.adapter merged into it."""
    if adapter := adapter_folder(run):
        return _load_merged(run, adapter, dtype, None, device)
    return load_job_base_model(run, dtype, device)


def load_tuned_model(
    run: RunConfig, dtype: torch.dtype, base: Any = None, device: Any = "cpu"
) -> Any:
    """The tuned model in `dtype`; its weights are exact in the format of the saved base.

    A `base` from `load_initial_model` cannot be used afterwards: it is changed in place, or its
    memory is released, because the device may not hold two models. Raises RetryableError when the
    files in output/ are not those that training wrote.
    """
    output = Path(run.paths.job) / "output"
    verify_output(output)
    spec, output_dtype = run.spec, saved_dtype(base_folder(run))
    if spec.method.type == "Full":
        release_weights(base)
        if (output / TRAINED_WEIGHTS).is_file():
            model = load_job_base_model(run, output_dtype, device)
            load_partial_output(model, output)
            return model.to(dtype)
        seed = spec.training.seed if spec.objective == "Reward" else None
        return load_base_model(output, output_dtype, device=device, reward_head_seed=seed).to(dtype)
    if adapter_folder(run):
        # `base` has an adapter in it already.
        release_weights(base)
        base = None
    return _load_merged(run, output, dtype, base, device)


def _load_merged(run: RunConfig, adapter: Path, dtype: torch.dtype, base: Any, device: Any) -> Any:
    """The base model with the update of the adapter in a folder, as `load_tuned_model`."""
    output_dtype = saved_dtype(base_folder(run))
    if run.spec.method.type == "QLoRA":
        # Quantization starts from the weights in the run's precision, which `base` may not have.
        release_weights(base)
        model = load_job_base_model(run, output_dtype, device)
        quantization = run.spec.method.quantization or Quantization()
        dtype_of_training = DTYPES[require_decided(run).spec.training.precision]
        rounded_base = four_bit_base(model, quantization, dtype_of_training)
        return merge_adapter(model, adapter, output_dtype, rounded_base).to(dtype)
    model = base if base is not None else load_job_base_model(run, dtype, device)
    return merge_adapter(model, adapter, output_dtype)


def release_weights(base: Any) -> None:
    """Release the memory of a model's weights."""
    for weight in base.parameters() if base is not None else ():
        weight.data = weight.data.new_empty(0)


def verify_output(output: Path) -> None:
    """Raise RetryableError where the trained weights differ from the list that training wrote."""
    listed = output / "files.json"
    if not wait_for_file(listed):
        raise RetryableError(
            "NoTrainedWeights",
            "Training wrote no weights.",
            "Check the workspace's storage.",
            file=str(listed),
        )
    wanted = json.loads(listed.read_text())["files"]
    found = hash_listed_files(output, wanted)
    present = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    differ = {name for name, facts in wanted.items() if found.get(name) != facts}
    if wrong := sorted(differ | (present - wanted.keys() - {listed.name})):
        raise RetryableError(
            "TrainedWeightsChanged",
            f"The trained weights are not those that training wrote: {', '.join(wrong)}.",
            "Run the job again; check the workspace's storage.",
            file=str(output),
        )


def merge_adapter(
    model: Any, adapter: Path, output_dtype: torch.dtype, rounded_base: FourBitBase | None = None
) -> Any:
    """The model with the adapter's update in its weights; a prefix stays an adapter.

    `rounded_base` replaces the base's linear layers first by the four-bit values that QLoRA trained
    on.
    """
    from peft import PeftModel

    with warnings.catch_warnings():
        # PEFT warns that LoRA has none of AdaLoRA's ranks, although it uses them.
        warnings.filterwarnings("ignore", message="The following rank_pattern keys")
        # GPT-2's layers are Conv1D, but not in four bits.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        # Both copies of a tied weight are merged into the original, which stays tied.
        warnings.filterwarnings("ignore", message=TIED_WARNING)
        adapted = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=True)
    if adapted.active_peft_config.is_prompt_learning:
        return adapted
    load_copies(adapted, adapter)
    merge_layers(adapted, output_dtype, rounded_base)
    restore_originals(adapted)
    return adapted.unload()
