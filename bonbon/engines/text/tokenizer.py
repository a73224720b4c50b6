"""Loads a model's tokenizer."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from bonbon.errors import UserError
from bonbon.files.load_errors import needs_code, why

SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
VOCABULARIES = (*SENTENCEPIECE, "tokenizer.json", "tekken.json", "vocab.json", "vocab.txt", "*.tiktoken")
"""The files in which a tokenizer may be saved."""


def load_tokenizer(directory: Path) -> Any:
    """Loads a tokenizer. Raises UserError when the directory has no tokenizer that can be read without running code."""
    if not any(found for name in VOCABULARIES for found in directory.glob(name)):
        raise UserError(f"{directory} has no tokenizer; save the model's tokenizer beside its weights")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        # The first encoding resets padding and truncation saved with the tokenizer, which must not happen later, while
        # another thread decodes.
        tokenizer.encode("", verbose=False)
    except Exception as error:
        raise UserError(
            f"the tokenizer in {directory} cannot be loaded ({why(error)}); {_remedy(directory, error)}"
        ) from error
    # Where the file that it looks for is missing, transformers makes a tokenizer with only special tokens.
    if set(tokenizer.get_vocab().values()) <= {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}:
        raise UserError(
            f"the tokenizer in {directory} has only special tokens; save the whole tokenizer beside the weights"
        )
    return tokenizer


def _remedy(directory: Path, error: Exception) -> str:
    if needs_code(error):
        return "save it as tokenizer.json (a tokenizer of the tokenizers library)"
    only = [name for name in SENTENCEPIECE if (directory / name).exists()]
    if only and not (directory / "tokenizer.json").exists():
        return f"to read {only[0]}, run pip install sentencepiece protobuf; or save the tokenizer as tokenizer.json"
    return "save the model's tokenizer beside its weights"
