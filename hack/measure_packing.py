"""Measures which architectures keep packed samples apart: `python -m hack.measure_packing`.

For every causal language model of the installed transformers a tiny random model is made; the
logits of a sample that is second in a sequence must be those of the sample alone. The output is the
table of `finetune_trainer.data.packing_support`; run this again when transformers changes. It needs
the environment of the trainer, and some minutes on a CPU.
"""

from __future__ import annotations

import signal
import sys
from collections import defaultdict
from typing import Any

SECONDS = 60
LARGEST = 60_000_000
"""Weights above which the default sizes were not brought down, and memory would be at risk."""
TINY: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "d_model": 64, "n_embd": 64, "dim": 64,
    "intermediate_size": 96, "ffn_hidden_size": 96, "ffn_dim": 96, "n_inner": 96,
    "decoder_ffn_dim": 96, "encoder_ffn_dim": 96, "moe_intermediate_size": 32, "d_ff": 96,
    "shared_expert_intermediate_size": 32, "intermediate_size_mlp": 96, "num_hidden_layers": 4,
    "num_layers": 4, "n_layer": 4, "n_layers": 4, "decoder_layers": 2, "encoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "num_key_value_heads": 2,
    "num_kv_heads": 2, "n_kv_heads": 2, "head_dim": 16, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "n_group": 1, "topk_group": 1,
    "num_shared_experts": 1, "n_shared_experts": 1, "moe_num_shared_experts": 1,
    "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "qk_head_dim": 16, "v_head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "is_decoder": True,
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16,
    "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 1, "mamba_n_groups": 1,
    "state_size": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "lru_width": 64,
    "attention_hidden_size": 64, "word_embed_proj_dim": 64, "embedding_size": 64,
    "vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8, "laurel_rank": 8,
    "num_kv_shared_layers": 0, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8,
    "mamba_expand": 2, "expand": 2, "time_step_rank": 8, "mamba_dt_rank": 8,
    "sliding_window": 8, "attention_window": 8, "attention_chunk_size": 8,
    "block_size": 16, "rotary_dim": 8,
}  # fmt: skip
"""Sizes by the names that configs give them; a config takes those that it has."""


SHIPPED: dict[str, dict[str, Any]] = {
    kind: {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4}
    for kind in ("lfm2", "lfm2_moe")
}
"""What every released model of a type has, and its default config has not."""
DROPPED: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"head_dim"}),
    frozenset({"num_key_value_heads"}),
    frozenset({"head_dim", "num_key_value_heads"}),
    frozenset({"head_dim", "qk_head_dim", "n_head", "n_embd"}),
    frozenset({"num_hidden_layers", "num_layers", "n_layer"}),
    frozenset({"mamba_n_heads", "mamba_d_head", "mamba_num_heads", "mamba_head_dim", "num_heads"}),
    frozenset({"sliding_window"}),
    frozenset({"hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"}),
)
"""Sizes that are left as they are, tried in this order: not every config accepts all of them."""


def tiny_config(kind: str, dropped: frozenset[str]) -> Any:
    """A config of this model type with small sizes."""
    from transformers import CONFIG_MAPPING

    made = CONFIG_MAPPING[kind]
    usual = made()
    text = usual.get_text_config()
    known = set(dir(text))
    wanted = {name: value for name, value in TINY.items() if name not in dropped and name in known}
    layers = next((TINY[n] for n in ("num_hidden_layers", "num_layers") if n in wanted), 4)
    for name in ("layer_types", "layers_block_type", "mlp_layer_types"):
        listed = getattr(text, name, None)
        if isinstance(listed, list) and name in text.to_dict():
            # The first of every kind, so that a hybrid is measured with all its layers.
            kinds = list(dict.fromkeys(listed))
            wanted[name] = (kinds * layers)[: max(layers, len(kinds))]
            layers = len(wanted[name])
    wanted |= {n: layers for n in ("num_hidden_layers", "num_layers") if n in wanted}
    return type(text)(**wanted | SHIPPED.get(kind, {}))


class NotMeasuredError(Exception):
    """The architecture could not be measured; the message says why."""


MIXED = "its packed samples influence each other"


def why_not_separate(kind: str) -> str | None:
    """None where the architecture keeps packed samples apart, else MIXED.

    Raises NotMeasuredError where that could not be measured.
    """
    errors: list[str] = []
    for dropped in DROPPED:
        try:
            return None if _are_separate(kind, dropped) else MIXED
        except (TimeoutError, NotMeasuredError):
            raise
        except Exception as error:
            errors.append(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}")
    raise NotMeasuredError(errors[0])


def _are_separate(kind: str, dropped: frozenset[str]) -> bool:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = tiny_config(kind, dropped)
    with torch.device("meta"):
        size = sum(
            w.numel()
            for w in AutoModelForCausalLM.from_config(config, dtype=torch.float32).parameters()
        )
    if size > LARGEST:
        raise NotMeasuredError(f"{size} weights")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for weight in model.parameters():
        # Initial weights are so small that a leak would hide in rounding.
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.1)
    ids = torch.randint(5, 100, (1, 24))
    positions = torch.cat([torch.arange(10), torch.arange(14)])[None]
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 10:]
        alone = model(
            input_ids=ids[:, 10:], position_ids=torch.arange(14)[None], use_cache=False
        ).logits
    if not torch.isfinite(alone).all():
        raise NotMeasuredError("its logits are not finite")
    return bool((packed - alone).abs().max() < 1e-4 * alone.abs().max())


def _too_long(signum: int, frame: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def main() -> int:
    """Print the table."""
    from transformers import __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found: defaultdict[str, list[str]] = defaultdict(list)
    signal.signal(signal.SIGALRM, _too_long)
    for kind in sorted(sys.argv[1:] or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        signal.alarm(SECONDS)
        try:
            reason = why_not_separate(kind)
            result = "apart" if reason is None else "mixed"
        except (TimeoutError, NotMeasuredError) as error:
            reason, result = str(error), "unknown"
        signal.alarm(0)
        print(f"{kind}: {reason or result}", file=sys.stderr, flush=True)
        found[result].append(kind)
    print(f"transformers {__version__}")
    for result, kinds in found.items():
        print(f"\n{result}:\n{' '.join(kinds)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
