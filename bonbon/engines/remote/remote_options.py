"""How to reach a fleet, and when to trust it."""

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from bonbon.http.endpoint import bearer_token, check_url


class RemoteOptions(BaseModel):
    """What `engine_options` may hold for a fleet."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    urls: tuple[str, ...] = Field(min_length=1)
    """The servers, such as `http://10.0.0.7:8000`, all with the same model and flags."""
    model: str = ""
    """What they serve the base as; by default the name of their one model that is no adapter."""
    api_key: SecretStr | None = None
    """The servers' --api-key."""
    api_key_env: str | None = None
    """Name of the environment variable that holds it; with _FILE at its end it names a file instead."""
    deadline: float = Field(300.0, gt=0)
    """Seconds a draw may take, retry included."""
    connect_timeout: float = Field(5.0, gt=0)
    """Seconds to connect to a server: room for two lost packets and a gateway that waits for its processor."""
    connections: int = Field(512, ge=1)
    """Most connections to each server."""
    max_response_bytes: int = Field(64 * 2**20, ge=1024)
    """A longer answer of a server is an error."""
    health_interval: float = Field(1.0, gt=0)
    """Seconds between two looks at a server."""
    health_timeout: float = Field(5.0, gt=0)
    """Seconds a look may take."""
    unhealthy_after: int = Field(3, ge=1)
    """Late looks in a row after which a server gets no requests; one that cannot be connected to gets none at once."""
    load_timeout: float = Field(120.0, gt=0)
    """Seconds that loading and checking a version on a server may take."""
    quorum: float = Field(0.5, ge=0, le=1)
    """A version counts as loaded when more than this share of the servers that are up serve it; 1: all of them."""

    prompt_logprobs: bool = False
    """Whether to ask servers for the log-probabilities of prompts, which `echo` with `logprobs` needs. Leave it off on
    CPUs, where a server of vLLM 0.32 crashes when it is asked for them."""

    @field_validator("urls", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [url for url in value.replace(",", " ").split() if url] if isinstance(value, str) else value

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        clean = tuple(check_url(url).rstrip("/").removesuffix("/v1") for url in urls)
        if len(set(clean)) < len(clean):
            raise ValueError("a server is named twice")
        return clean

    @property
    def bearer(self) -> str | None:
        """The servers' key. Raises UserError when its environment variable is not set."""
        option = "engine_options.api_key_env"
        return bearer_token(self.api_key, self.api_key_env, option=option, param=option)
