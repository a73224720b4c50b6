"""Checks the URLs of HTTP peers, and reads their bearer tokens."""

from urllib.parse import urlsplit

from pydantic import SecretStr

from bonbon.errors import UserError
from bonbon.files.secret_files import secret


def check_url(text: str) -> str:
    """Returns `text` if it is an http or https URL with a host and without credentials; raises ValueError otherwise."""
    try:
        url = urlsplit(text)
        _ = url.port  # urlsplit checks the port only when it is accessed.
    except ValueError:
        # The original message may quote a part of a password.
        raise ValueError("the URL is invalid: its host or port cannot be parsed") from None
    if url.username is not None or url.password is not None:
        raise ValueError("the URL must not contain credentials; use api_key_env")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"{text!r} is not an http:// or https:// URL with a host")
    return text


def bearer_token(key: SecretStr | None, variable: str | None, *, option: str, param: str) -> str | None:
    """Returns `key`, or else the value of the environment variable or of its file (see `secret`), or None.

    Raises UserError, naming `option`, when the variable is not set.
    """
    if key is not None:
        return key.get_secret_value()
    if variable is None:
        return None
    if not (token := secret(variable)):
        raise UserError(f"{option} = {variable!r}: the environment variable {variable} is not set", param=param)
    return token
