"""How the tests start vLLM."""

VLLM_OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 2**28,
    "max_lora_rank": 8,
    "max_num_seqs": 128,
}
"""In 32 bits, as the reference computes; small, and without the time that compiling takes."""
