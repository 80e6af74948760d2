"""QLoRA's base: linear layers in four bits, all other weights in the run's precision.

Source: Dettmers et al. 2023 (arXiv 2305.14314). Four bits are used in training only: adapters are
merged into the dequantised base, with which they were trained. Quantising the merged weights again
would round the adapters away.
"""

from collections.abc import Iterator
from typing import Any

import torch
from finetune_api.finetunejob import Method, Quantization
from finetune_api.protocol import Strategy

from finetune_trainer.methods.image_models import language_model_prefix

BLOCK_SIZE = 64
"""Weights that share a scale, the default of bitsandbytes."""


def quantization_config(method: Method, dtype: torch.dtype, strategy: Strategy) -> Any:
    """The quantization_config for `from_pretrained`, or None for a base that is not quantised.

    Under ZeRO-3 and FSDP the packed bits are stored in a tensor of the run's dtype, because both
    flatten and gather them together with the other weights.
    """
    if method.type != "QLoRA":
        return None
    from transformers import BitsAndBytesConfig

    settings = method.quantization or Quantization()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.format.lower(),
        bnb_4bit_use_double_quant=settings.double,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype if strategy in ("ZeRO3", "FSDP") else torch.uint8,
    )


def quantize_meta_model(model: Any, config: Any) -> None:
    """Give a model on the device `meta` the layers and packed shapes of a quantised one."""
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
    """Keep bitsandbytes from repacking the bits of a layer in place.

    On CPUs with AVX512-BF16 it would do so at the first forward pass in eval mode, and training
    would continue with other bits.
    """
    for _, layer in four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = False


def four_bit_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and modules of the layers with four-bit weights."""
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit" and hasattr(module, "quant_storage"):
            yield name, module


def quantizable_layer_names(model: Any) -> set[str]:
    """Names of the layers of an unquantised model that transformers would quantise, without those
    of a vision tower, which is exported unchanged."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    prefix = language_model_prefix(model)
    excluded = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    return {
        name
        for name, module in model.named_modules()
        if (type(module) is torch.nn.Linear or isinstance(module, Conv1D))
        and should_convert_module(name, excluded)
        and name.startswith(prefix)
    }


def round_to_four_bits(weight: torch.Tensor, settings: Quantization, dtype: Any) -> torch.Tensor:
    """Quantise and dequantise a weight as QLoRA does; returns fp32.

    `weight`: [out, in]; `dtype`: the run's precision.
    """
    from bitsandbytes import functional

    bits, state = functional.quantize_4bit(
        weight.to(dtype).contiguous(),
        blocksize=BLOCK_SIZE,
        compress_statistics=settings.double,
        quant_type=settings.format.lower(),
    )
    state.dtype = torch.float32
    dequantized: torch.Tensor = functional.dequantize_4bit(bits, state)
    return dequantized
