"""Why a model's files cannot be loaded, for the person who named them."""


def needs_code(error: Exception) -> bool:
    """Whether transformers refused a model because it brings Python code of its own (`auto_map` in a config)."""
    return "trust_remote_code" in str(error)


def why(error: Exception) -> str:
    """What kept transformers from loading a model. Its advice to trust the model's code is left out: there is no
    setting for that."""
    if needs_code(error):
        return "it needs Python code of its own (auto_map in its configuration), and bonbon runs no model's code"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
