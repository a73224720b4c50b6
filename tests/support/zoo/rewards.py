"""The reward models of the zoo, and the options with which they are used as rewards."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from tests.support.zoo.policies import chatml, headers, inst, older, sizes, text, turns
from tests.support.zoo.tokenizers import VOCABULARY, roberta, wordpiece, xlnet


@dataclass(frozen=True)
class Head:
    """A tiny sequence classifier: its architecture, its tokenizer, its sizes, and the reward's options.

    `index` selects the output that is the score, and `logprob` whether its log-probability is used. `segments` is
    whether the model distinguishes the two segments of a pair. `refused` is the message of the expected refusal, if
    any, and `spoil` modifies the files.
    """

    kind: str
    tokenizer: Callable[[], PreTrainedTokenizerFast] | None
    sizes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    index: int = 0
    logprob: bool = False
    segments: bool = False
    refused: str = ""
    spoil: Callable[[Path], object] = lambda directory: None

    def save(self, directory: Path) -> Path:
        """Saves random weights, the same ones each time, with scores of order one, and the tokenizer."""
        config = CONFIG_MAPPING[self.kind](num_labels=self.outputs, **self.sizes)
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and weight.shape[0] == self.outputs and "embed" not in name:
                torch.nn.init.normal_(weight)
        model.save_pretrained(directory)
        if self.tokenizer is not None:
            self.tokenizer().save_pretrained(directory)
        self.spoil(directory)
        return directory


def encoder(**changes: Any) -> dict[str, Any]:
    """Returns the sizes of an encoder whose configuration uses BERT's names."""
    usual = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
        "pad_token_id": 0,
    }
    return usual | changes


def needs_code(directory: Path) -> None:
    """Changes the model's type to one that only code in its own directory defines."""
    path = directory / "config.json"
    own = {"model_type": "homemade", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))


REGRESSION = {"problem_type": "regression"}
PADDED = {"pad_token_id": 0}

REWARDS: dict[str, Head] = {
    "Llama, one output": Head("llama", headers, sizes(**PADDED)),
    "Llama, no padding token": Head("llama", chatml, sizes()),
    "Llama, pad_token_id -1": Head("llama", inst, sizes(pad_token_id=-1)),
    "Qwen2, one regression output": Head("qwen2", chatml, sizes(**PADDED, **REGRESSION)),
    "Qwen3, three regression outputs": Head(
        "qwen3", chatml, sizes(**PADDED, **REGRESSION, head_dim=32), outputs=3, options={"label": 1}, index=1
    ),
    "Mistral, three classes": Head(
        "mistral",
        inst,
        sizes(**PADDED, problem_type="single_label_classification"),
        outputs=3,
        options={"label": 2},
        index=2,
        logprob=True,
    ),
    "Llama, two labels at once": Head(
        "llama",
        headers,
        sizes(**PADDED, problem_type="multi_label_classification"),
        outputs=2,
        options={"label": 1},
        index=1,
    ),
    "Llama, three outputs of which nothing is said": Head(
        "llama", headers, sizes(**PADDED), outputs=3, options={"label": 1}, refused="set `output` to 'logit'"
    ),
    "Llama, the same with the option output": Head(
        "llama", headers, sizes(**PADDED), outputs=3, options={"label": 1, "output": "logit"}, index=1
    ),
    "Gemma 2, template without a system role": Head("gemma2", turns, sizes(**PADDED, head_dim=32, sliding_window=16)),
    "GPT-2": Head("gpt2", text, older(**PADDED)),
    "BERT": Head("bert", wordpiece, encoder(), segments=True),
    "RoBERTa, 64 positions for 62 tokens": Head("roberta", roberta, encoder(pad_token_id=1, type_vocab_size=1)),
    "DeBERTa-v2": Head(
        "deberta-v2",
        wordpiece,
        encoder(relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False),
    ),
    "DistilBERT": Head(
        "distilbert",
        wordpiece,
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "hidden_dim": 64,
            "n_layers": 2,
            "n_heads": 2,
            "max_position_embeddings": 64,
        },
    ),
    "ELECTRA": Head("electra", wordpiece, encoder(embedding_size=32), segments=True),
    "ModernBERT": Head(
        "modernbert",
        wordpiece,
        encoder(cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, local_attention=16),
    ),
    "XLNet, which names no limit": Head(
        "xlnet",
        xlnet,
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "initializer_range": 0.1}
        | {"pad_token_id": 5},
        options={"max_length": 96},
        segments=True,
    ),
    "BART": Head(
        "bart",
        roberta,
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
        }
        | {"decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64}
        | {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
    ),
    "BERT without a tokenizer": Head("bert", None, encoder(), refused="has no tokenizer"),
    "Llama without a tokenizer": Head("llama", None, sizes(), refused="has no tokenizer"),
    "A model with code of its own": Head(
        "llama", headers, sizes(), refused="bonbon never runs a model's code.*kind http", spoil=needs_code
    ),
}
