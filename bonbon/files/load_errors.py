"""Explains why a model's files cannot be loaded."""


def needs_code(error: Exception) -> bool:
    """Returns whether transformers refused a model because it ships its own Python code (`auto_map` in a config)."""
    return "trust_remote_code" in str(error)


def why(error: Exception) -> str:
    """Returns the reason why transformers could not load a model.

    The message leaves out transformers' advice to trust the model's code, because bonbon has no setting for that.
    """
    if needs_code(error):
        return "it needs its own Python code (auto_map in its configuration), and bonbon never runs a model's code"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
