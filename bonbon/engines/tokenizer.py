"""A model's tokenizer."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from bonbon.errors import UserError


def load_tokenizer(directory: Path) -> Any:
    """Raises UserError when the directory holds no tokenizer that can be read without running code."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        # The first encoding resets padding and truncation saved with the tokenizer, which must not happen later, while
        # another thread decodes.
        tokenizer.encode("", verbose=False)
    except Exception as error:
        raise UserError(
            f"the tokenizer in {directory} cannot be loaded ({type(error).__name__}: {error}); "
            "save the model's tokenizer beside its weights"
        ) from error
    return tokenizer
