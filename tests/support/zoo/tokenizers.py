"""Small tokenizers in the styles of well-known models, trained on a few sentences, and their chat templates."""

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 420
"""Token ids that the tiny models know; no tokenizer here has more."""
LEARNT = 80
"""Number of pieces that a tokenizer learns from the sentences."""

SENTENCES = (
    "Where is my order? It is on its way, please wait a little.",
    "The cat sat on the mat and said: hello, how can I help you today?",
    "We are sorry for the delay; thanks a lot for your patience!",
    "def add(a, b):\n    return a + b\n",
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's template."""
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""Llama 3's template."""
INST = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
"""Mistral's and Llama 2's template: no special token begins a turn, and system messages are refused."""
TURNS = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""Gemma's template."""
MARKS = {
    CHATML: ["<|im_start|>", "<|im_end|>"],
    HEADERS: ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    INST: [],
    TURNS: ["<start_of_turn>", "<end_of_turn>"],
}
"""The tokens that a template writes around a turn."""


def byte_level(chat: str | None = None, *, bos: bool = False, **special: Any) -> PreTrainedTokenizerFast:
    """Returns byte-level BPE as in GPT-2, Llama 3 and Qwen. With `bos`, texts begin with a special token."""
    names = ["<|pad|>", "<|begin_of_text|>", "<|end_of_text|>", *MARKS.get(chat or "", [])]
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = len(alphabet) + LEARNT
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer = _assembled(learnt, trainer, names)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = _opening(tokenizer, "<|begin_of_text|>")
    given = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|pad|>"}
    return _wrapped(tokenizer, chat, names, given | special)


def sentencepiece(chat: str | None = None, *, prefix: bool = True, **special: Any) -> PreTrainedTokenizerFast:
    """Returns BPE over words marked with ▁, with a fallback to bytes, as in Llama 2 and Gemma.

    With `prefix`, as in Llama 2, the first word of a text is marked as well, and decoding removes the mark.
    """
    names = ["<pad>", "<s>", "</s>", "<unk>", *MARKS.get(chat or "", [])]
    marked = normalizers.Replace(" ", "▁")
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marked]) if prefix else marked
    learnt.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=LEARNT + 40, show_progress=False)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = _assembled(learnt, trainer, names, bytes_, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer.normalizer = learnt.normalizer
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.post_processor = _opening(tokenizer, "<s>")
    given = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _wrapped(tokenizer, chat, names, given | special)


def wordpiece(chat: str | None = None) -> PreTrainedTokenizerFast:
    """Returns WordPiece as in BERT: a text is [CLS] text [SEP], and a pair has a second segment."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = _framed("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", names)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return _wrapped(tokenizer, chat, names, special)


def roberta() -> PreTrainedTokenizerFast:
    """Returns byte-level BPE between <s> and </s> with padding token 1, as in RoBERTa. It sets no maximum length."""
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + LEARNT, initial_alphabet=alphabet, special_tokens=names, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = _framed("<s> $A </s>", "<s> $A </s> </s> $B </s>", names)
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>"}
    return _wrapped(tokenizer, None, names, special | {"sep_token": "</s>"})


def xlnet() -> PreTrainedTokenizerFast:
    """Returns unigram pieces with the pooled token at the end and padding on the left, as in XLNet."""
    names = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=names, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = _framed("$A <sep> <cls>:2", "$A <sep> $B:1 <sep>:1 <cls>:2", names)
    special = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "sep_token": "<sep>",
    }
    return _wrapped(tokenizer, None, names, special | {"cls_token": "<cls>", "padding_side": "left"})


def _framed(single: str, pair: str, names: list[str]) -> processors.PostProcessor:
    return processors.TemplateProcessing(single, pair, [(name, at) for at, name in enumerate(names)])


def _assembled(
    learnt: Tokenizer, trainer: trainers.Trainer, names: list[str], bytes_: list[str] | None = None, **model: Any
) -> Tokenizer:
    """A BPE of the special `names`, the bytes, and what `learnt` learns, in this order."""
    learnt.train_from_iterator(SENTENCES, trainer)
    state = json.loads(learnt.to_str())["model"]
    pieces = [*names, *(bytes_ or []), *sorted(state["vocab"], key=state["vocab"].get)]
    assert len(pieces) <= VOCABULARY
    merges = [tuple(merge) for merge in state["merges"]]
    return Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, **model))


def _opening(tokenizer: Tokenizer, token: str) -> processors.PostProcessor:
    return processors.TemplateProcessing(
        f"{token} $A", f"{token} $A {token} $B", [(token, tokenizer.token_to_id(token))]
    )


def _wrapped(
    tokenizer: Tokenizer, chat: str | None, names: list[str], special: dict[str, Any]
) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=names, clean_up_tokenization_spaces=False, **special
    )
    wrapped.chat_template = chat
    return wrapped
