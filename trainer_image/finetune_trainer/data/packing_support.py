"""Which architectures keep the examples of a packed row apart.

A packed row tells its borders by position ids that start from 0 again. Attention layers of most
architectures take block-diagonal masks from them; recurrent layers carry their state on, and some
attention looks across. The tables were measured by `python -m hack.measure_packing` with
transformers 5.19: the logits of an example that stands second in a row are those of the example
alone, or not. Mamba 2, xLSTM and the Zambas could not be made small, and are recurrent.

An architecture in neither table is packed only where the job says so, and the train stage looks
before the first step whether that is right.
"""

from __future__ import annotations

from finetune_api.combinations import resolved
from finetune_api.finetunejob import FineTuneJobSpec

from finetune_trainer.runtime.errors import UserError

_APART = """
apertus arcee aria_text axk1 bitnet codegen cohere cohere2 cohere2_moe ctrl cwm deepseek_v2
deepseek_v3 diffllama doge dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo gemma gemma2
gemma3 gemma3_text gemma3n gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text glm
glm4 glm4_moe glm4_moe_lite got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese
gptj granite granite_swa granitemoe granitemoe_swa granitemoeshared helium hrm_text hunyuan_v1_dense
hunyuan_v1_moe hy_v3 hyperclovax jais2 jetmoe laguna llama llama4 llama4_text mellum mimo_v2_flash
minicpm3 minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral modernbert-decoder
nanochat nemotron olmo olmo2 olmo3 olmoe persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe
seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma youtu
"""
APART = frozenset(_APART.split())
"""model_type of config.json; packed unless the job says otherwise."""
_MIXED = """
afmoe axk2 bamba bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot
blenderbot-small bloom camembert cpmant data2vec-text deepseek_v32 deepseek_v4 electra ernie falcon
falcon_h1 falcon_mamba glm_moe_dsa gpt_oss granitemoehybrid hy_v4 inkling_text jamba kimi_linear
lfm2 lfm2_moe mamba mamba2 marian mbart megatron-bert minimax mpt mvp nemotron_h olmo_hybrid
openai-gpt opt pegasus plbart prophetnet qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text
qwen3_next recurrent_gemma reformer rembert roberta roberta-prelayernorm roc_bert roformer rwkv
trocr xglm xlm-roberta xlm-roberta-xl xlstm zamba zamba2
"""
MIXED = frozenset(_MIXED.split())
"""Never packed."""


def is_packed(spec: FineTuneJobSpec, kind: str) -> bool:
    """Whether a job's rows hold several examples; `kind` is the model_type of its config.

    Raises UserError where the job wants it and the architecture cannot.
    """
    wanted = spec.training.packing
    if wanted and kind in MIXED:
        raise UserError(
            "PackingUnsupported",
            f"In the architecture {kind} the examples of a packed row would see each other.",
            "Leave training.packing out, or set it to false.",
        )
    return resolved(spec.to_wire(), "packing") and (bool(wanted) or kind in APART)
