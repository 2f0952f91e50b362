"""Tiny random models of many causal families, by configuration alone."""

from __future__ import annotations

from typing import Any

# Sizes that most configurations share; a configuration takes the keys it knows.
_COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "n_inner": 64}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MAMBA = {"state_size": 8, "time_step_rank": 4, "expand": 2, "conv_kernel": 4}

# model_type -> what differs from the common sizes
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {"sliding_window": 16},
    "mistral": {"sliding_window": 16},
    "phi": {},
    "phi3": {},
    "gpt2": _GPT,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 3, "n_head": 4},
    "falcon": {"head_dim": None},
    "gptj": {**_GPT, "rotary_dim": 2},
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "num_hidden_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 16,
    },
    "gpt_neox": {},
    "gpt_bigcode": _GPT,
    "codegen": {**_GPT, "rotary_dim": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64},
    "stablelm": {},
    "starcoder2": {"sliding_window": 16},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 16},
    "cohere": {},
    "cohere2": {"sliding_window": 16},
    "granite": {},
    "glm": {},
    "glm4": {},
    "nemotron": {},
    "smollm3": {},
    "persimmon": {},
    "exaone4": {"sliding_window": 16},
    "helium": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 32, **_MOE},
    "qwen3_moe": {"num_experts": 4, **_MOE},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        **_MOE,
    },
    "mamba": _MAMBA,
    "mamba2": {**_MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "falcon_mamba": _MAMBA,
    "jamba": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "bamba": {
        "attn_layer_indices": [1],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 16},
    "lfm2": {"full_attn_idxs": [1]},
    "gemma3n_text": {
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "num_kv_shared_layers": 1,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "sliding_window": 16,
        "activation_sparsity_pattern": None,
    },
    "arcee": {},
    "ernie4_5": {},
    "xglm": {"d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 64},
    "minimax": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, **_MOE},
    "qwen3_next": {
        "num_experts": 4,
        "shared_expert_intermediate_size": 32,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        **_MOE,
    },
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 16,
        "layers_block_type": ["mamba", "attention", "moe"],
        "n_routed_experts": 4,
        "moe_shared_expert_intermediate_size": 16,
        **_MOE,
    },
    "zamba2": {
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
        "chunk_size": 16,
    },
}


def tiny_model(model_type: str, seed: int = 0, **more: Any) -> Any:
    """A random float32 model of the family, in evaluation mode. more: other keys of its configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    sizes = {**_COMMON, **FAMILIES[model_type], **more}
    config = AutoConfig.for_model(model_type, **{key: value for key, value in sizes.items() if value is not None})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:  # some families leave matrices as they come, or at zero
                parameter.normal_(0, 0.05)
    return model.eval()


def tiny_subject(pattern: str = "unstructured", model_type: str = "llama", **fields: Any) -> Any:
    """What a coefficient search works on, with a tiny model and random tokens."""
    import torch

    from crepe.recipe import build, choose
    from crepe.search.subject import make_subject

    torch.manual_seed(0)
    choices = choose(build({"model": "tiny", "pattern": pattern, **fields}))
    rows = torch.randint(3, 100, (6, 16))
    return make_subject(tiny_model(model_type).eval(), choices, rows[:4], rows[4:], (3, 5, 7))
