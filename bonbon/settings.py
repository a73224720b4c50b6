"""Every setting, in one place.

Read, first wins, from: arguments, the environment (`BONBON_MODEL`, `BONBON_SERVICE__PORT`, ...), and the TOML file
named by `BONBON_CONFIG` (default `bonbon.toml`, if it is there). In the environment a value may be in a file: then
`_FILE` ends the variable's name and its value is the path. A key that no setting knows is an error, in the environment
as in the file.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from bonbon.deadlines import Timeouts
from bonbon.errors import UserError
from bonbon.secret_files import SUFFIX, with_files

PREFIX, CONFIG = "BONBON_", "BONBON_CONFIG"
# What Kubernetes sets in every pod beside a Service whose name begins with "bonbon".
_SERVICE_LINK = re.compile(r".*(_SERVICE_HOST|_SERVICE_PORT(_.*)?|_PORT(_\d+_.*)?)")


class Section(BaseModel):
    """A group of settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RewardSpec(BaseModel):
    """Which reward, and its options.

    A string is shorthand: `kind:target`, an http(s) URL, or a model's directory or hub name.

    Every kind has a `target` (a model, a URL, a callable); what else it takes, the kind's own options say.
    """

    model_config = ConfigDict(extra="allow", frozen=True, coerce_numbers_to_str=True)

    kind: str
    target: str = ""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.startswith(("http://", "https://")):
            return {"kind": "http", "target": value}
        kind, colon, target = value.partition(":")
        if colon and kind.isidentifier() and "/" not in kind:
            return {"kind": kind, "target": target}
        return {"kind": "classifier", "target": value}

    @property
    def options(self) -> dict[str, Any]:
        """What the kind's own options are made of: `target` (when set) and every extra key."""
        target = {"target": self.target} if self.target else {}
        return target | dict(self.model_extra or {})


class Limits(Section):
    """What a tenant may ask for; None: as much as it likes."""

    requests_per_minute: int | None = Field(None, ge=1)
    """Requests."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Tokens drawn, over all candidates."""


class Tenant(Limits):
    """A tenant of its own. A limit that it does not name is everybody's."""

    reward: str | None = None
    """Which of `rewards` ranks its candidates; None: the service's reward."""

    def limits(self, default: Limits) -> Limits:
        """Its limits, where `default` are everybody's."""
        return default.model_copy(update=self.model_dump(include=self.model_fields_set & set(Limits.model_fields)))


class ServiceSettings(Section):
    """The online half."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    alias: str = "bonbon"
    """The model name that means: whatever is best now."""
    max_best_of: int = Field(32, ge=1, le=128)
    """Largest n a request may ask for."""
    default_max_tokens: int = Field(256, ge=1)
    """max_tokens of a request that names none; less where the context has less room."""
    max_prompts: int = Field(64, ge=1)
    """Most prompts that one request to /v1/completions may bring."""
    max_tokens_in_flight: int = Field(2**20, ge=1)
    """Tokens that may be drawn for all requests at once: candidates times max_tokens. More have to wait."""
    max_waiting: int = Field(256, ge=0)
    """Requests that may wait; more are refused with a 503."""
    max_wait: float = Field(30.0, gt=0)
    """Seconds that a request waits before it is refused with a 503."""
    stream_buffer_bytes: int = Field(256 * 2**20, ge=2**16)
    """Bytes of streamed answers, over all streams, that may wait for clients to read them. When more are ready, the
    stream with the most bytes waiting is cut off."""
    send_timeout: float = Field(60.0, gt=0)
    """Seconds that a client may go without reading anything of what is ready for it before its connection is closed."""
    limits: Limits = Limits()
    """Of each tenant that has no limits of its own."""
    rewards: dict[str, RewardSpec] = Field(default_factory=dict)
    """Rewards besides the service's, by the name that groups and metrics have for them."""
    tenants: dict[str, Tenant] = Field(default_factory=dict)
    """Limits of their own, and which of service.rewards ranks their candidates, by tenant."""
    retention_days: float | None = Field(None, gt=0)
    """Groups older than this are deleted, with the training snapshots that hold them."""
    retention_poll: float = Field(3600.0, gt=0)
    """Seconds between looks for old groups."""
    spool_bytes: int = Field(256 * 2**20, ge=0)
    """How much of the log may wait in data_dir/spool while the database does not take it; 0: nothing."""
    spool_full: Literal["refuse", "drop"] = "refuse"
    """What becomes of an answer that neither database nor spool takes: a 503, or given unlogged, and counted."""
    max_body_bytes: int = Field(4 * 2**20, ge=1024)
    """Larger request bodies are refused."""
    max_header_bytes: int = Field(32 * 1024, ge=1024)
    """A request whose request line and headers are larger than this is refused with a 431."""
    header_timeout: float = Field(10.0, gt=0)
    """Seconds that a client has to send the request line and headers, from the moment it connects."""
    body_timeout: float = Field(30.0, gt=0)
    """Seconds that a client has to send the body of a request after its headers."""
    max_connections: int = Field(2048, ge=1)
    """Connections that may be open at once. A new one takes the place of the connection that has waited longest for
    its client; where every connection is being answered, requests on new ones are refused with a 503."""
    max_connections_per_client: int | None = Field(None, ge=1)
    """Connections that one client address may have open (an IPv6 client counts by its /64 network); by default three
    quarters of max_connections. Behind a proxy all clients have the proxy's address."""
    reward_deadline: float = Field(30.0, gt=0)
    """Seconds the reward has before the answer is degraded."""
    audit_fraction: float = Field(0.03, ge=0, le=1)
    """Share of the champion's answers that are compared with the base in the background; each costs 2n draws."""
    win_rate_floor: float = Field(0.5, ge=0, le=1)
    """When the live win rate against the base is known to be under this, best-of-n answers again; 0: never."""
    audit_queue: int = Field(256, ge=1)
    """Audits that may wait; more are dropped and counted."""
    registry_poll: float = Field(0.5, gt=0)
    """Seconds between looks at the registry for a promotion."""
    drain_timeout: float = Field(30.0, gt=0)
    """Seconds that requests in flight have to finish when the service stops."""
    ping_interval: float = Field(5.0, gt=0)
    """Seconds between the comments that keep a stream open while candidates are drawn."""
    traces: Literal["off", "otlp"] = "off"
    """otlp: send a trace of each request to where OTEL_EXPORTER_OTLP_ENDPOINT says; needs bonbon[otel]."""
    auth: Literal["auto", "on", "off"] = "auto"
    """Whether requests need a key. auto: unless the service listens to this machine only and no key was ever made."""
    keys_poll: float = Field(1.0, gt=0)
    """Seconds after which a key that was made or revoked is known."""
    api_key: SecretStr | None = None
    """A key of the tenant without a name, besides those that `bonbon keys create` makes: for answers and feedback."""
    admin_key: SecretStr | None = None
    """A key for /admin. While there is no key of any kind and the service listens to this machine only, requests that
    are made on this machine need none."""

    @field_validator("api_key", "admin_key")
    @classmethod
    def _not_empty(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not key.get_secret_value().strip():
            raise ValueError("it is empty, so no request could bring it: write a key, or leave it out")
        return key

    @model_validator(mode="after")
    def _tenants_name_known_rewards(self) -> "ServiceSettings":
        for tenant, own in self.tenants.items():
            if own.reward is not None and own.reward not in self.rewards:
                known = ", ".join(map(repr, self.rewards)) or "none"
                raise ValueError(
                    f"tenants.{tenant}.reward is {own.reward!r}, which service.rewards does not have; it has: {known}"
                )
        return self


class TrainSettings(Section):
    """The offline half: what a training run is made with."""

    loss: Literal["bonbon", "paper", "sft", "ipo", "dpo"] = "bonbon"
    """bonbon: a*SFT + (1-a)*IPO/Var, best against a random other; paper: raw alpha as in the paper, best against worst;
    the others for comparison."""
    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """Weight of the SFT term. auto: .005 for `paper`; for `bonbon` .5, and a divergence in place of both terms for
    prompts that were asked often enough to know their rewards' distribution."""
    kl: float | None = Field(None, gt=0)
    """With alpha auto: nats from the reference, on held-out prompts, that a policy is brought back to which went
    further; by default best-of-n's own, log n - (n-1)/n."""
    dpo_beta: float = Field(0.1, gt=0)
    """Beta of the `dpo` loss."""
    method: Literal["lora", "full"] = "lora"
    """Train a LoRA adapter or all weights."""
    lora_rank: int = Field(16, ge=1)
    """Rank of the adapter."""
    lora_alpha: int = Field(32, ge=1)
    """The adapter's output is scaled by lora_alpha / lora_rank."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs that are dropped in training."""
    lora_targets: str = "all-linear"
    """Module names the adapter is put on: `all-linear`, or a comma-separated list."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak of the learning rate; by default from the model's width (an adapter's 5e-4 at 2000, 3e-4 at 4096)."""
    epochs: float = Field(3.0, gt=0)
    """Passes over the pairs."""
    batch_size: int = Field(32, ge=1)
    """Pairs per optimiser step, over all processes and accumulation steps."""
    micro_batch_size: int = Field(8, ge=1)
    """Pairs per forward pass in each process; what memory allows."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: about a third slower, for much less memory."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; then it falls to 0 in a straight line."""
    max_grad_norm: float = Field(10.0, gt=0)
    """Longer gradients are shortened to this norm."""
    weight_decay: float = Field(0.0, ge=0)
    """Of AdamW."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """auto: bf16 on a GPU that has it, else 32-bit."""
    seed: int = Field(0, ge=0)
    """Of the order of pairs, the adapter's first weights, dropout, and the evaluation's draws."""
    checkpoint_every: int = Field(100, ge=1)
    """Optimiser steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints that are kept."""
    tenants: list[str] | None = None
    """Whose groups may be trained on. Without it they must be of one tenant, for the version answers everybody."""
    min_pairs: int = Field(64, ge=1)
    """Fewer clean pairs than this are refused."""
    max_sampler_gap: float = Field(0.2, gt=0)
    """Nats per token by which a pair's logged log-probability may differ from the reference's; more than 1 % of pairs
    beyond it are refused, for the reference did not sample them."""
    held_out_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of prompts (by their digest) that are never trained on."""
    threads: int = Field(0, ge=0)
    """CPU threads for torch; 0 leaves torch's own choice."""
    processes: int = Field(1, ge=1)
    """Training processes on this machine, one a GPU; they share every batch."""
    sharding: Literal["none", "full"] = "none"
    """none: every process holds the whole model; full: weights, gradients and optimiser state are split among the
    processes (FSDP2)."""
    launcher: str = ""
    """Command that starts the training processes in the place of torchrun on this machine."""


class EvaluateSettings(Section):
    """How a trained version is measured."""

    prompts: int = Field(200, ge=2)
    """Held-out prompts to draw for."""
    answers: int = Field(2, ge=1)
    """Draws of the policy per prompt."""
    batch_size: int = Field(32, ge=1)
    """Sequences per forward pass of the KL estimate."""
    engine_options: dict[str, Any] = Field(default_factory=dict)
    """In place of the same keys of the service's engine_options: the evaluation's engine may run beside it, on the same
    machine, and must fit into the memory that is left."""


class GateSettings(Section):
    """What a version must show before it is promoted. All but the two ratios are read on 95 % interval bounds."""

    min_win_rate: float = Field(0.55, ge=0, le=1)
    """Lower bound of the win rate against the base."""
    max_p_value: float = Field(0.05, gt=0, le=1)
    """Most that chance may explain of a win rate above `min_win_rate`, by a test that needs no large sample."""
    min_win_rate_reference: float = Field(0.5, ge=0, le=1)
    """Lower bound of the win rate against the reference policy, when that is not the base."""
    min_held_out_win_rate: float = Field(0.5, ge=0, le=1)
    """Lower bound of the win rate by the held-out reward, when one is configured."""
    max_kl_factor: float = Field(3.0, gt=0)
    """Upper bound of KL from the reference, as a multiple of best-of-n's own log n - (n-1)/n."""
    length_ratio: tuple[float, float] = (0.5, 2.0)
    """Mean length over the base's."""
    min_distinct_ratio: float = Field(0.5, ge=0)
    """Distinct-2 over the base's."""


class LoopSettings(Section):
    """When the daemon trains."""

    min_groups: int = Field(1000, ge=1)
    """Clean groups of the current champion, not yet trained on, that start a round."""
    poll: float = Field(30.0, gt=0)
    """Seconds between looks at the pair log."""
    auto_promote: bool = True
    """Promote what passes the gate; otherwise it waits, approved, for `bonbon models promote`."""
    lease_seconds: float = Field(60.0, gt=0)
    """How long a dead trainer blocks the next one, which then watches its lease for half of that; a live one renews."""


class Settings(BaseSettings):
    """Shared by both halves, with a section for each part."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    model: str = ""
    """The base model: a directory in Hugging Face format, or a hub name."""
    revision: str | None = None
    """Revision of a hub model."""
    reward: RewardSpec | None = None
    """The reward that ranks candidates."""
    held_out_reward: RewardSpec | None = None
    """A reward that is never trained on, used in evaluation only."""
    n: int = Field(8, ge=2, le=128)
    """How many candidates best-of-n draws."""
    engine: str = "embedded"
    """Which engine draws: embedded, vllm, remote (a fleet of vLLM servers), fake."""
    engine_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the engine; each engine documents its own."""
    end_tokens: list[str | int] | None = None
    """Tokens (or their ids) that end an answer, such as ["</s>"]; by default those in the model's files."""
    data_dir: Path = Path("data")
    """Where the registry's files, training runs and the default database live."""
    database_url: str = ""
    """SQLAlchemy URL of the pair log and registry; by default SQLite in data_dir."""
    database_password: SecretStr | None = None
    """Password of database_url, where that has none."""
    database_timeout: float = Field(10.0, gt=0)
    """Seconds that the database has for one call, such as connecting, a statement, a commit, or a wait for a lock. When
    they are over, the connection is given up, and the group that was to be stored waits in the spool."""
    database_bulk_timeout: float = Field(600.0, gt=0)
    """The same for calls that read or delete many groups: statistics, exports, snapshots, purges, migrations."""
    service: ServiceSettings = ServiceSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    gate: GateSettings = GateSettings()
    loop: LoopSettings = LoopSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = TomlConfigSettingsSource(settings_cls, Path(os.environ.get(CONFIG, "bonbon.toml")))
        return init_settings, _Environment(settings_cls), toml

    @property
    def database(self) -> str:
        """The database's URL, the default and the password filled in."""
        url = self.database_url or f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'bonbon.db'}"
        if self.database_password is None:
            return url
        from bonbon.database import with_password

        return with_password(url, self.database_password.get_secret_value())

    @property
    def database_timeouts(self) -> Timeouts:
        """How long calls to the database may take."""
        return Timeouts(self.database_timeout, self.database_bulk_timeout)

    @property
    def versions_dir(self) -> Path:
        """Root of the registry's content-addressed files."""
        return self.data_dir.absolute() / "versions"

    @property
    def spool_dir(self) -> Path:
        """Groups that the database has not taken yet."""
        return self.data_dir.absolute() / "spool"

    @property
    def runs_dir(self) -> Path:
        """Training runs."""
        return self.data_dir.absolute() / "runs"


class _Environment(EnvSettingsSource):
    def _load_env_vars(self) -> Mapping[str, str | None]:
        ours = {name: value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}
        return {name.lower(): value for name, value in with_files(ours).items()}


def load_settings(**overrides: Any) -> Settings:
    """Settings from all sources; `overrides` win. Raises UserError naming each bad key and value, keys' values not."""
    config = os.environ.get(CONFIG)
    if config is not None and not Path(config).is_file():
        raise UserError(f"{CONFIG} is {config!r}: there is no such file; name a TOML file, or unset it")
    if unknown := _unknown_variables():
        raise UserError(
            f"settings: {', '.join(unknown)}: no setting has that name; a section's settings are named with two "
            f"underscores, as {PREFIX}SERVICE__PORT"
        )
    try:
        return Settings(**{key: value for key, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise UserError("settings: " + "; ".join(map(_problem, error.errors()))) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"settings: {config or 'bonbon.toml'} is not TOML: {error}") from error
    except SettingsError as error:
        raise UserError(f"settings: {error}: {error.__cause__}; an object is written as JSON") from error


def _problem(item: Any) -> str:
    key = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"{key}: no setting has that name"
    if key.endswith(("_key", "_password")):
        return f"{key}: {item['msg']}"
    return f"{key} = {item['input']!r}: {item['msg']}"


def _unknown_variables() -> list[str]:
    in_kubernetes = "KUBERNETES_SERVICE_HOST" in os.environ
    known = {name.upper() for name in Settings.model_fields} | {CONFIG.removeprefix(PREFIX)}
    return sorted(
        name
        for name in os.environ
        if name.upper().startswith(PREFIX)
        and name.upper().removeprefix(PREFIX).removesuffix(SUFFIX).partition("__")[0] not in known
        and not (in_kubernetes and _SERVICE_LINK.fullmatch(name))
    )
