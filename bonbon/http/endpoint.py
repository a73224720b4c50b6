"""What any HTTP peer is named by: a URL without secrets in it, and a bearer token from somewhere safer."""

from urllib.parse import urlsplit

from pydantic import SecretStr

from bonbon.errors import UserError
from bonbon.secret_files import secret


def check_url(text: str) -> str:
    """`text`, an http or https URL with a host and without credentials. Raises ValueError when it is not."""
    try:
        url = urlsplit(text)
        _ = url.port  # looked at only when it is asked for
    except ValueError:
        # Its message may quote a part of a password.
        raise ValueError("no URL: its host or its port cannot be read") from None
    if url.username is not None or url.password is not None:
        raise ValueError("credentials do not belong in a URL; use api_key_env")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"{text!r}: give an http:// or https:// URL with a host")
    return text


def bearer_token(key: SecretStr | None, variable: str | None, *, option: str, param: str) -> str | None:
    """`key`, or else the variable of the environment or of a file (see `secret`); None where neither is given.

    Raises UserError, naming `option`, when the variable is not set.
    """
    if key is not None:
        return key.get_secret_value()
    if variable is None:
        return None
    if not (token := secret(variable)):
        raise UserError(f"{option} = {variable!r}: this environment variable is not set", param=param)
    return token
