"""QLoRA's base: linear layers in four bits, everything else in the run's precision.

Source: Dettmers et al. 2023 (arXiv 2305.14314). Bits are only for training: results are merged
into the dequantised base, which is what the adapters have learnt beside. Merging into four bits
again would round the adapters away.
"""

from collections.abc import Iterator
from typing import Any

import torch
from finetune_api.finetunejob import Method, Quantization
from finetune_api.run import Strategy

BLOCK_SIZE = 64
"""Weights that share a scale, as bitsandbytes has it."""


def quantization_config(method: Method, dtype: torch.dtype, strategy: Strategy) -> Any:
    """How transformers is to load the base, or None for a base that is not quantised.

    Where weights are sharded the bits are stored as numbers of the run's precision, because ZeRO
    and FSDP flatten and gather them together with the other weights.
    """
    if method.type != "QLoRA":
        return None
    from transformers import BitsAndBytesConfig

    how = method.quantization or Quantization()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=how.format.lower(),
        bnb_4bit_use_double_quant=how.double,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype if strategy in ("ZeRO3", "FSDP") else torch.uint8,
    )


def quantize_meta_model(model: Any, config: Any) -> None:
    """Give a model without memory the layers and packed shapes of one that was quantised."""
    from bitsandbytes.nn import Params4bit
    from transformers.integrations import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    replace_with_bnb_linear(model, get_keys_to_not_convert(model), config)
    storage = config.bnb_4bit_quant_storage
    for _, layer in four_bit_layers(model):
        packed = layer.in_features * layer.out_features // 2 // storage.itemsize
        layer.weight = Params4bit(
            torch.empty(packed, 1, dtype=storage, device="meta"),
            requires_grad=False,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
            quant_storage=storage,
            module=layer,
            bnb_quantized=True,
        )
    model.is_loaded_in_4bit = True
    disable_cpu_repacking(model)


def disable_cpu_repacking(model: Any) -> None:
    """Forbid layers to pack their bits anew: on CPUs with AVX512-BF16 bitsandbytes would do that in
    place at the first forward pass outside training, and training would go on with other bits."""
    for _, layer in four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = False


def four_bit_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and modules of the layers whose weights have four bits."""
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit" and hasattr(module, "quant_storage"):
            yield name, module


def quantizable_layer_names(model: Any) -> set[str]:
    """Names of the layers of an ordinary model that transformers would quantise."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    return {
        name
        for name, module in model.named_modules()
        if (type(module) is torch.nn.Linear or isinstance(module, Conv1D))
        and should_convert_module(name, kept)
    }


def round_to_four_bits(weight: torch.Tensor, how: Quantization, dtype: Any) -> torch.Tensor:
    """The weight as QLoRA's base holds it, in fp32; `dtype` is the run's precision."""
    from bitsandbytes import functional

    bits, state = functional.quantize_4bit(
        weight.to(dtype).contiguous(),
        blocksize=BLOCK_SIZE,
        compress_statistics=how.double,
        quant_type=how.format.lower(),
    )
    state.dtype = torch.float32
    whole: torch.Tensor = functional.dequantize_4bit(bits, state)
    return whole
