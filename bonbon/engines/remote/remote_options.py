"""The options of the remote engine (`engine_options`): how to reach a fleet, and when a server counts as healthy."""

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from bonbon.http.endpoint import bearer_token, check_url


class RemoteOptions(BaseModel):
    """The options of the remote engine (`engine_options`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    urls: tuple[str, ...] = Field(min_length=1)
    """The servers, such as `http://10.0.0.7:8000`, all with the same model and flags."""
    model: str = ""
    """The name under which the servers serve the base; the default is the name of their only model that is not an
    adapter."""
    api_key: SecretStr | None = None
    """The API key of the servers (vLLM's --api-key)."""
    api_key_env: str | None = None
    """The name of the environment variable that contains the API key; a variable of this name with the suffix _FILE
    names a file instead."""
    deadline: float = Field(300.0, gt=0)
    """The seconds that a request may take, including a retry."""
    connect_timeout: float = Field(5.0, gt=0)
    """The seconds that connecting to a server may take: enough for two lost packets on a busy gateway."""
    connections: int = Field(512, ge=1)
    """The maximum number of connections to each server."""
    max_response_bytes: int = Field(64 * 2**20, ge=1024)
    """The maximum size of a server's answer in bytes; a longer one is an error."""
    health_interval: float = Field(1.0, gt=0)
    """The seconds between two health checks of a server."""
    health_timeout: float = Field(5.0, gt=0)
    """The seconds that a health check may take."""
    unhealthy_after: int = Field(3, ge=1)
    """The number of consecutive health checks that must time out before a server gets no more requests. A server that
    refuses connections is excluded at once."""
    load_timeout: float = Field(120.0, gt=0)
    """The seconds that loading and checking a version on a server may take."""
    quorum: float = Field(0.5, ge=0, le=1)
    """A version counts as loaded when more than this share of the servers that are up have it; 1 requires all of them.
    """

    prompt_logprobs: bool = False
    """Whether the servers compute log-probabilities of prompts, which `echo` with `logprobs` needs. Leave it off for
    servers on CPUs, where vLLM 0.32 crashes when it computes them."""

    @field_validator("urls", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [url for url in value.replace(",", " ").split() if url] if isinstance(value, str) else value

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        clean = tuple(check_url(url).rstrip("/").removesuffix("/v1") for url in urls)
        if len(set(clean)) < len(clean):
            raise ValueError("a server is listed twice")
        return clean

    @property
    def bearer(self) -> str | None:
        """Returns the servers' API key. Raises UserError when its environment variable is not set."""
        option = "engine_options.api_key_env"
        return bearer_token(self.api_key, self.api_key_env, option=option, param=option)
