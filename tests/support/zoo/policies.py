"""The policies of the zoo and their configurations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.support.zoo.tokenizers import CHATML, HEADERS, INST, TURNS, VOCABULARY, byte_level, sentencepiece

CONTEXT = 128
WIDTH, HEADS, HEAD = 128, 4, 32
"""The smallest sizes that vLLM's CPU kernels support."""
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

Tokens = Callable[[], PreTrainedTokenizerFast]


@dataclass(frozen=True)
class Policy:
    """A tiny model: its architecture as named by transformers, its tokenizer, and its sizes.

    `targets` are the modules of its adapter, `context` is the engine's context length, and `vllm_needs` is a package
    without which vLLM cannot load the architecture.
    """

    kind: str
    tokenizer: Tokens
    sizes: Mapping[str, Any] = field(default_factory=dict)
    tied: bool = False
    targets: str | list[str] = "all-linear"
    context: int = CONTEXT
    vllm_needs: str = ""

    def config(self) -> Any:
        """Returns the model's configuration."""
        tokenizer = self.tokenizer()
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        return CONFIG_MAPPING[self.kind](tie_word_embeddings=self.tied, **ends, **self.sizes)

    def save(self, directory: Path) -> Path:
        """Saves random weights, the same ones each time, and the tokenizer."""
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(self.config()).save_pretrained(directory)
        self.tokenizer().save_pretrained(directory)
        return directory

    def save_adapter(self, directory: Path, base: Path) -> Path:
        """Saves a LoRA adapter with random weights that change the base's draws."""
        torch.manual_seed(1)
        config = LoraConfig(r=4, target_modules=self.targets, init_lora_weights=False, task_type="CAUSAL_LM")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        get_peft_model(model, config).save_pretrained(directory)
        return directory


def sizes(**changes: Any) -> dict[str, Any]:
    """Returns the sizes of a decoder whose configuration uses Llama's names; None removes one."""
    usual = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.1,
    }
    return {name: value for name, value in {**usual, **changes}.items() if value is not None}


def older(**changes: Any) -> dict[str, Any]:
    """Returns the sizes of a decoder whose configuration uses GPT-2's names."""
    usual = {
        "vocab_size": VOCABULARY,
        "n_embd": WIDTH,
        "n_layer": 2,
        "n_head": HEADS,
        "n_positions": CONTEXT,
        "initializer_range": 0.1,
    }
    return {name: value for name, value in {**usual, **changes}.items() if value is not None}


def text() -> PreTrainedTokenizerFast:
    return byte_level()


def text_with_bos() -> PreTrainedTokenizerFast:
    return byte_level(bos=True)


def chatml() -> PreTrainedTokenizerFast:
    return byte_level(CHATML, eos_token="<|im_end|>")


def headers() -> PreTrainedTokenizerFast:
    return byte_level(HEADERS, bos=True, eos_token="<|eot_id|>")


def inst() -> PreTrainedTokenizerFast:
    return sentencepiece(INST)


def turns() -> PreTrainedTokenizerFast:
    return sentencepiece(TURNS, prefix=False)


def words() -> PreTrainedTokenizerFast:
    return sentencepiece()


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": HEADS,
    "q_lora_rank": 32,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": HEAD,
    "v_head_dim": HEAD,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * (HEAD // 2),
    "long_factor": [4.0] * (HEAD // 2),
    "original_max_position_embeddings": CONTEXT // 2,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
GEMMA3 = {
    "text_config": sizes(head_dim=HEAD, sliding_window=16, tie_word_embeddings=True),
    "vision_config": VISION,
    "mm_tokens_per_image": 4,
    "image_token_index": 5,
    "boi_token_index": 6,
    "eoi_token_index": 7,
}
MAMBA = {"mamba_d_state": 16, "mamba_n_heads": 8, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_chunk_size": 16}

POLICIES: dict[str, Policy] = {
    # Dense models
    "Llama 2": Policy("llama", inst, sizes()),
    "Llama 3": Policy("llama", headers, sizes(), tied=True),
    "Llama, dynamic RoPE": Policy("llama", text_with_bos, sizes(rope_parameters=DYNAMIC)),
    "Mistral": Policy("mistral", inst, sizes(sliding_window=16)),
    "Qwen2": Policy("qwen2", chatml, sizes(), tied=True),
    "Qwen3": Policy("qwen3", chatml, sizes(head_dim=HEAD)),
    "Gemma": Policy("gemma", turns, sizes(num_key_value_heads=1, head_dim=HEAD), tied=True),
    "Gemma 2": Policy("gemma2", turns, sizes(head_dim=HEAD, sliding_window=16), tied=True),
    "Gemma 3, text": Policy("gemma3_text", turns, sizes(head_dim=HEAD, sliding_window=16), tied=True),
    "Gemma 3, multimodal": Policy("gemma3", turns, GEMMA3, tied=True, targets=ATTENTION, vllm_needs="torchvision"),
    "Phi": Policy("phi", text, sizes(num_key_value_heads=HEADS)),
    "Phi-3, LongRoPE": Policy(
        "phi3",
        words,
        sizes(rope_parameters=LONGROPE, original_max_position_embeddings=CONTEXT // 2, pad_token_id=0),
        context=CONTEXT // 2,
    ),
    "GPT-2": Policy("gpt2", text, older(), tied=True),
    "GPT-J": Policy("gptj", text, older(rotary_dim=16)),
    "GPT-Neo": Policy(
        "gpt_neo",
        text,
        sizes(num_hidden_layers=None, num_layers=2, num_attention_heads=None, num_heads=HEADS, num_key_value_heads=None)
        | {"attention_types": [[["global", "local"], 1]], "window_size": 16},
        tied=True,
    ),
    "GPT-NeoX": Policy("gpt_neox", text, sizes(num_key_value_heads=None)),
    "OPT": Policy(
        "opt",
        text_with_bos,
        sizes(intermediate_size=None, ffn_dim=WIDTH, num_key_value_heads=None, word_embed_proj_dim=WIDTH, init_std=0.1),
        tied=True,
    ),
    "BLOOM": Policy(
        "bloom",
        text,
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 2, "n_head": HEADS, "seq_length": CONTEXT}
        | {"initializer_range": 0.1},
        tied=True,
    ),
    "Falcon": Policy("falcon", text, sizes(num_key_value_heads=None), tied=True),
    "MPT": Policy(
        "mpt",
        text,
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_heads": HEADS, "n_layers": 2, "max_seq_len": CONTEXT}
        | {"initializer_range": 0.1},
    ),
    "StarCoder2": Policy("starcoder2", text, sizes(sliding_window=16), tied=True),
    "StableLM": Policy("stablelm", text, sizes()),
    "OLMo 2": Policy("olmo2", chatml, sizes()),
    "OLMo 3": Policy("olmo3", chatml, sizes(sliding_window=16)),
    "Cohere": Policy("cohere", headers, sizes(logit_scale=1.0), tied=True),
    "Granite": Policy("granite", chatml, sizes(), tied=True),
    "SmolLM3": Policy("smollm3", chatml, sizes(pad_token_id=0), tied=True),
    "GLM-4": Policy("glm4", chatml, sizes(head_dim=HEAD, pad_token_id=0)),
    "Nemotron": Policy("nemotron", words, sizes()),
    "EXAONE 4": Policy("exaone4", chatml, sizes(sliding_window=16, sliding_window_pattern=2)),
    "ERNIE 4.5": Policy("ernie4_5", inst, sizes(), tied=True),
    # Mixtures of experts
    "Mixtral": Policy("mixtral", inst, sizes(**LOCAL_EXPERTS), targets=ATTENTION),
    "Qwen2-MoE": Policy("qwen2_moe", chatml, sizes(**EXPERTS, shared_expert_intermediate_size=32)),
    "Qwen3-MoE": Policy("qwen3_moe", chatml, sizes(**EXPERTS, head_dim=HEAD), targets=ATTENTION),
    "OLMoE": Policy("olmoe", text, sizes(num_experts=4, num_experts_per_tok=2), targets=ATTENTION),
    "DeepSeek-V3": Policy(
        "deepseek_v3",
        chatml,
        # As in the hub's config.json; transformers does not read these two, vLLM does.
        sizes(**LATENT, topk_method="noaux_tc", scoring_func="sigmoid"),
        targets=["q_a_proj", "q_b_proj", "o_proj"],
    ),
    "Llama 4": Policy(
        "llama4_text",
        headers,
        sizes(
            **LOCAL_EXPERTS | {"num_experts_per_tok": 1},
            head_dim=HEAD,
            intermediate_size_mlp=WIDTH,
            interleave_moe_layer_step=1,
            attention_chunk_size=32,
        ),
        targets=ATTENTION,
    ),
    "Phi-3.5-MoE": Policy("phimoe", words, sizes(**LOCAL_EXPERTS), targets=ATTENTION),
    "gpt-oss": Policy("gpt_oss", chatml, sizes(**LOCAL_EXPERTS, head_dim=HEAD, sliding_window=16), targets=ATTENTION),
    "Granite-MoE": Policy("granitemoe", chatml, sizes(**LOCAL_EXPERTS), tied=True, targets=ATTENTION),
    # Models with a state besides keys and values
    "LFM2": Policy(
        "lfm2",
        chatml,
        # As in the hub's config.json; transformers does not read block_dim, vLLM does.
        sizes(layer_types=["conv", "full_attention"], conv_dim=WIDTH, block_dim=WIDTH),
        tied=True,
        targets=ATTENTION[:3],
    ),
    "Jamba": Policy(
        "jamba",
        words,
        sizes(
            num_experts=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=16,
            use_mamba_kernels=False,
        ),
        targets=ATTENTION,
    ),
    "Bamba": Policy("bamba", headers, sizes(**MAMBA, attn_layer_indices=[1]), targets=ATTENTION),
    "Falcon-H1": Policy("falcon_h1", chatml, sizes(**MAMBA, mamba_d_ssm=256), targets=ATTENTION),
    "Qwen3-Next": Policy(
        "qwen3_next",
        chatml,
        sizes(
            **EXPERTS,
            head_dim=HEAD,
            shared_expert_intermediate_size=32,
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=HEAD,
            linear_value_head_dim=HEAD,
        ),
        targets=ATTENTION,
    ),
    "MiniMax": Policy(
        "minimax",
        text_with_bos,
        sizes(**LOCAL_EXPERTS, head_dim=HEAD, layer_types=["linear_attention", "full_attention"], block_size=16),
        targets=["o_proj"],
    ),
    "Mamba": Policy(
        "mamba", text, {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 16}
    ),
    "Mamba 2": Policy(
        "mamba2",
        text,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "state_size": 16,
            "num_heads": 8,
            "head_dim": HEAD,
            "n_groups": 1,
            "chunk_size": 16,
        },
    ),
}
