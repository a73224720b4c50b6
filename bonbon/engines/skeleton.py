"""A base model without its weights, to check adapters against."""

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoConfig, AutoModelForCausalLM

from bonbon.engines.adapter import Adapter


def check_fit(adapter: Adapter, base: Path) -> None:
    """Raise UserError when the adapter does not fit the base model in directory `base`. Reads no weights of it."""
    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
            model = PeftModel(AutoModelForCausalLM.from_config(config), adapter.config, autocast_adapter_dtype=False)
        adapter.check(get_peft_model_state_dict(model, save_embedding_layers=False))
    except Exception as error:
        raise adapter.misfit(error) from error
