"""Why a job fails for good: its model, tokenizer or adapter, and what they cannot do."""

from finetune_api.reasons.reason import Reason

MODEL = (
    Reason(
        "AdapterIncomplete",
        "prepare",
        "The folder of `model.adapter` lacks the config or the weights of an adapter.",
        "Give the folder into which PEFT saved a LoRA adapter, with `adapter_model.safetensors`.",
    ),
    Reason(
        "AdapterUnsupported",
        "prepare",
        "The adapter of `model.adapter` does not fit the model or `method`, or has settings "
        "that are not supported.",
        "Set `method` to the settings that the message lists, or merge the adapter into its "
        "base model and use the merged folder as the model.",
    ),
    Reason(
        "BadChatTemplate",
        "prepare",
        "`model.tokenizer.chatTemplate` or `chatTemplateKwargs` cannot be used, or the model "
        "has several chat templates and no default, or one with a syntax error.",
        "Render a conversation of user and assistant with the template, and correct it; of "
        "several templates set the one to use in `model.tokenizer.chatTemplate`.",
    ),
    Reason(
        "BadGenerationConfig",
        "prepare, train",
        "The model's generation settings could not be saved with the tuned model.",
        "Correct `generation_config.json` of the model as the message says.",
    ),
    Reason(
        "BadSpecialToken",
        "prepare",
        "A token of `model.tokenizer.specialTokens` is blank or in the vocabulary already.",
        "Leave the token out, or spell it in another way.",
    ),
    Reason(
        "ChatTemplateUnsupported",
        "prepare",
        "The chat template leaves out a part of a conversation, or cannot be split into "
        "prompts and answers.",
        "Set `model.tokenizer.chatTemplate` to a template that writes every part, and whose "
        "`add_generation_prompt` writes exactly the beginning of the assistant's turn.",
    ),
    Reason(
        "ContextTooLong",
        "prepare, train",
        "`training.maxSequenceLength`, or with GRPO prompt and answer, exceeds the model's "
        "context length.",
        "Lower the length that the message names, or set `model.rope`.",
    ),
    Reason(
        "ExpertsNotAdaptable",
        "prepare, train",
        "The architecture does not keep a layer's experts in one weight, so adapters cannot be "
        "put on them.",
        "Set `method.moe.experts` to false, or `method.type` to Full.",
    ),
    Reason(
        "ModelIncomplete",
        "prepare, train",
        "The model lacks a file or weights.",
        "Upload the whole model, with config.json, tokenizer and all safetensors files.",
    ),
    Reason(
        "NoChatTemplate",
        "prepare",
        "The data has conversations, and the model has no chat template.",
        "Set `model.tokenizer.chatTemplate`, use the instruct release of the model, or give "
        "prompt and completion columns.",
    ),
    Reason(
        "NoRewardHead",
        "prepare",
        "transformers has no sequence classifier of the model's architecture, which objective "
        "Reward needs.",
        "Use another model, such as a Llama, Qwen, Mistral or Gemma.",
    ),
    Reason(
        "NotARewardModel",
        "prepare",
        "`grpo.rewardModel`, or with objective Reward `model`, is not a classifier with one "
        "output.",
        "Use the artifact of a Reward job, or a classifier with one output.",
    ),
    Reason(
        "NotMixtureOfExperts",
        "prepare",
        "`method.moe` is set, and the model has no experts.",
        "Leave `method.moe` out.",
    ),
    Reason(
        "PackingUnsupported",
        "prepare, train",
        "In the model's architecture the examples of a packed sequence attend to each other.",
        "Leave `training.packing` out.",
    ),
    Reason(
        "RopeUnsupported",
        "prepare",
        "`model.rope` needs one kind of rotary positions that are not scaled yet.",
        "Leave `model.rope` out.",
    ),
    Reason(
        "TiedModule",
        "prepare, train",
        "`method.lora.modulesToSave` has one of two modules that share a weight.",
        "Name both, which are then trained as one weight, or neither.",
    ),
    Reason(
        "UnknownTargetModule",
        "prepare, train",
        "`targetModules` or `modulesToSave` has a name that no layer of the model has, or one "
        "that cannot be trained.",
        "Use names that the message lists; for `targetModules` also `all-linear`.",
    ),
    Reason(
        "UnknownToken",
        "prepare",
        "The chat template writes a special token that the model does not have.",
        "Add it to `model.tokenizer.specialTokens`, or use the model's own tokens.",
    ),
    Reason(
        "UnsupportedModel",
        "prepare, train",
        "The model's architecture or tokenizer is not supported, or the tokenizer does not "
        "give the data back.",
        "Use a causal language model that transformers supports without remote code, with its "
        "tokenizer.json.",
    ),
)
