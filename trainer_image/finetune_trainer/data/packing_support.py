"""Which architectures keep the samples of a packed sequence apart.

A packed sequence marks its borders by position ids that restart from 0. Attention layers of most
architectures derive block-diagonal masks from them; recurrent layers carry their state across, some
attention layers attend across, and the chunks of Llama 4's attention are counted from the start of
the sequence, not of the sample. `python -m hack.measure_packing` measured the tables with
transformers 5.19: whether the logits of a sample that is second in a sequence are those of the
sample alone. Mamba 2, xLSTM and the Zambas could not be made small, and are recurrent.

An architecture in neither table is packed only where the job requests it, and the train stage
checks before the first step whether that is correct.
"""

from __future__ import annotations

from finetune_api.combinations import resolve_switch
from finetune_api.finetunejob import FineTuneJobSpec

from finetune_trainer.runtime.errors import UserError

_PACKABLE = """
apertus arcee aria_text axk1 bitnet codegen cohere cohere2 cohere2_moe ctrl cwm deepseek_v2
deepseek_v3 diffllama doge dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo gemma gemma2
gemma3 gemma3_text gemma3n gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text glm
glm4 glm4_moe glm4_moe_lite got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese
gptj granite granite_swa granitemoe granitemoe_swa granitemoeshared helium hrm_text hunyuan_v1_dense
hunyuan_v1_moe hy_v3 hyperclovax jais2 jetmoe laguna llama mellum mimo_v2_flash minicpm3 minimax_m2
minimax_m3_vl_text ministral ministral3 mistral mixtral modernbert-decoder nanochat nemotron olmo
olmo2 olmo3 olmoe persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3
solar_open stablelm starcoder2 vaultgemma youtu
"""
PACKABLE = frozenset(_PACKABLE.split())
"""model_type of config.json; packed unless the job says otherwise."""
_UNPACKABLE = """
afmoe axk2 bamba bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot
blenderbot-small bloom camembert cpmant data2vec-text deepseek_v32 deepseek_v4 electra ernie falcon
falcon_h1 falcon_mamba glm_moe_dsa gpt_oss granitemoehybrid hy_v4 inkling_text jamba kimi_linear
lfm2 lfm2_moe llama4 llama4_text mamba mamba2 marian mbart megatron-bert minimax mpt mvp nemotron_h
olmo_hybrid openai-gpt opt pegasus plbart prophetnet qwen2_5_vl qwen3_5 qwen3_5_moe qwen3_5_moe_text
qwen3_5_text qwen3_next recurrent_gemma reformer rembert roberta roberta-prelayernorm roc_bert
roformer rwkv trocr xglm xlm-roberta xlm-roberta-xl xlstm zamba zamba2
"""
UNPACKABLE = frozenset(_UNPACKABLE.split())
"""Never packed."""


def should_pack(spec: FineTuneJobSpec, model_type: str) -> bool:
    """Whether a job's sequences hold several samples; `model_type` is that of its config.

    Raises UserError where the job requests it and the architecture cannot.
    """
    requested = spec.training.packing
    if requested and model_type in UNPACKABLE:
        raise UserError(
            "PackingUnsupported",
            f"In the architecture {model_type} samples of a packed sequence would attend to each "
            "other.",
            "Leave training.packing out, or set it to false.",
        )
    return resolve_switch(spec.to_wire(), "packing") and (bool(requested) or model_type in PACKABLE)
