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

from bonbon.concurrency.deadlines import Timeouts
from bonbon.errors import UserError
from bonbon.secret_files import SUFFIX, with_files
from bonbon.shown_values import shown_input

ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#@\s]+")
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
    k: int | None = Field(None, ge=1, le=128)
    """Draws of a distilled champion from which the alias answers with the best. By default as many as the version's
    evaluation showed it to need; with 1 every answer is one draw, whatever that costs in quality."""
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
    audit_budget: float = Field(0.05, ge=0, le=1)
    """How many tokens audits may draw, as a share of those that a distilled champion saves. Audits compare some of its
    answers with best-of-n of the base in the background; this setting decides how many."""
    audit_fraction: float | None = Field(None, ge=0, le=1)
    """Share of the champion's answers that are audited, whatever that costs. By default audit_budget decides."""
    win_rate_floor: float = Field(0.45, ge=0, le=1)
    """When the live win rate against best-of-n of the base is known to be under this, the champion answers with the
    best of twice as many draws; when that would be n or more, best-of-n answers again. 0 never acts. Where service.k
    fixes the number of draws, best-of-n answers again when the live win rate against one draw of the base is known to
    be under .5."""
    audit_queue: int = Field(256, ge=1)
    """Audits that may wait; more are dropped and counted."""
    registry_poll: float = Field(0.5, gt=0)
    """Seconds between looks at the registry for a promotion."""
    drain_timeout: float = Field(30.0, gt=0)
    """Seconds that requests in flight have to finish when the service stops."""
    ping_interval: float = Field(5.0, gt=0)
    """Seconds between the comments that keep a stream open while candidates are drawn."""
    traces: Literal["off", "otlp"] = "off"
    """otlp: send a trace of each request to where OTEL_EXPORTER_OTLP_ENDPOINT says; needs bonbon-serve[otel]."""
    auth: Literal["auto", "on", "off"] = "auto"
    """Whether requests need a key. auto: unless the service listens to this machine only and no key was ever made."""
    cors_origins: list[str] = Field(default_factory=list)
    """Origins such as `https://app.example.com` whose web pages may use `/v1` from a browser; `*` stands for all. By
    default none may."""
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

    @field_validator("cors_origins")
    @classmethod
    def _as_browsers_write_them(cls, origins: list[str]) -> list[str]:
        if not all(origin == "*" or ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError(
                "write each origin with its scheme and without a slash or a path at the end, such as "
                "https://app.example.com, or write * for all"
            )
        return [origin.lower() for origin in origins]

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
    """How a version is trained."""

    loss: Literal["gvpo", "vbon", "bond", "bonbon", "paper", "sft", "ipo", "dpo"] = "gvpo"
    """What is minimised. `gvpo` learns from all candidates of a group at once, and so do `vbon` and `bond`, which aim
    at best-of-n itself. The others compare two candidates: `bonbon` and `paper` are BoNBoN with its terms in units of
    their variance and as printed. All but `gvpo`, `bonbon` and `paper` are there for comparison."""
    sft_weight: float = Field(1.0, ge=0)
    """Weight of a supervised term beside `gvpo`, which keeps the policy near to what the base says."""
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight of the supervised term in `bonbon` (default 0.5) and in `paper` (default 0.005)."""
    dpo_beta: float = Field(0.1, gt=0)
    """The beta of the `dpo` loss."""
    kl: float | None = Field(None, gt=0)
    """The most that a trained policy may diverge from the base, in nats; by default as much as best-of-n does,
    log n - (n-1)/n."""
    method: Literal["lora", "full"] = "lora"
    """Whether a LoRA adapter or all weights are trained."""
    lora_rank: int = Field(16, ge=1)
    """The rank of the adapter."""
    lora_alpha: int = Field(32, ge=1)
    """The adapter's output is scaled by lora_alpha / lora_rank."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """The share of the adapter's inputs that is dropped in training."""
    lora_targets: str = "all-linear"
    """The modules that get an adapter: a comma-separated list of module names, or `all-linear`, every linear layer that
    reads text and on which engines can serve an adapter. Of a mixture of experts these are the layers of its attention
    and, in some models, of the experts that every token goes to."""
    learning_rate: float | None = Field(None, gt=0)
    """The peak of the learning rate. By default a short probe chooses it by what it gains on validation groups."""
    epochs: float = Field(1.0, gt=0)
    """How often the training groups are gone through before the policy draws for itself."""
    batch_size: int = Field(16, ge=1)
    """Groups in an optimiser step, over all processes and forward passes."""
    micro_batch_size: int = Field(4, ge=1)
    """Groups in a forward pass of each process. Lower it when memory runs out; it must divide batch_size."""
    gradient_checkpointing: bool = False
    """Whether activations are computed twice instead of kept: about a third slower, for much less memory."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """The share of the steps in which the learning rate rises; after that it falls to 0 in a straight line."""
    max_grad_norm: float = Field(4.0, gt=1)
    """A gradient that is longer than this many times the median of the latest ones is shortened to that."""
    weight_decay: float = Field(0.0, ge=0)
    """The weight decay of AdamW."""
    refine: Literal["auto", "on", "off"] = "auto"
    """Whether the policy then learns from its own draws. `auto` does so where a reward is configured, the engine can
    load what is trained and there are enough validation prompts; `on` refuses to train where it cannot be done."""
    refine_tokens: int = Field(2_000_000, ge=1)
    """The most tokens that are drawn for learning from the policy's own draws. It ends earlier when nothing more is
    gained."""
    refine_draws: int = Field(8, ge=2)
    """Candidates that are drawn for each prompt."""
    refine_replay: int = Field(2, ge=0)
    """Optimiser steps on earlier draws after each step on fresh ones."""
    refine_learning_rate: float | None = Field(None, gt=0)
    """The learning rate on the policy's own draws; by default a fifth of that on logged groups. It is halved whenever
    validation prompts gain nothing more for a while."""
    validation_draws: int = Field(256, ge=2)
    """Draws for the validation prompts, over all of them, whenever policies are compared by what they draw; at least
    two for each prompt."""
    rescore: bool = True
    """Whether a round has the newest reward score groups that another reward, or another version of it, scored. It
    scores the newest ones until `loop.min_groups` of the base and of the version to start from have its scores."""
    base_prompts: int = Field(1000, ge=0)
    """For how many prompts the base draws once a version answers in its place: training compares candidates with the
    base's, so that prompts which only a version has answered are of no use without."""
    draws_in_flight: int = Field(32, ge=1)
    """Prompts that a training draws for at once. Where its engine also answers requests, keep this well below what that
    engine can draw at once."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """`auto` computes in bf16 on a GPU that has it and in 32 bits elsewhere; `no` always computes in 32 bits."""
    seed: int = Field(0, ge=0)
    """The seed of everything that is random in training and evaluation."""
    checkpoint_every: int = Field(100, ge=1)
    """Optimiser steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints are kept."""
    tenants: list[str] | None = None
    """The tenants whose groups may be trained on. By default all groups must be of one tenant, because the version
    answers everybody."""
    min_pairs: int = Field(64, ge=1)
    """Fewer training groups than this are refused."""
    max_sampler_gap: float = Field(0.1, gt=0)
    """The most, in nats an answer, by which the engine's log-probabilities may be higher on average than the trainer's,
    beyond the noise of 16-bit arithmetic. More than this means that another policy drew the groups."""
    held_out_fraction: float = Field(0.1, gt=0, lt=0.5)
    """The share of conversations that are kept for tests: no round trains on them or chooses by them."""
    validation_fraction: float = Field(0.1, ge=0, lt=0.5)
    """The share of conversations that learning rates, steps and policies are chosen by. No round trains on them."""
    threads: int = Field(0, ge=0)
    """CPU threads for torch; 0 leaves the choice to torch."""
    processes: int = Field(1, ge=1)
    """Training processes on this machine, one for each GPU; they share every step."""
    sharding: Literal["none", "full"] = "none"
    """`none` gives every process the whole model; `full` splits weights, gradients and optimiser state among the
    processes (FSDP2)."""
    launcher: str = ""
    """A command that starts the training processes instead of torchrun on this machine."""


class EvaluateSettings(Section):
    """How a trained version is measured."""

    prompts: int = Field(400, ge=2)
    """The most test prompts that are drawn for."""
    draws: int | None = Field(None, ge=1)
    """Draws of the version for each prompt; by default n. Best-of-k is measured for every k up to this."""
    batch_size: int = Field(32, ge=1)
    """Sequences in a forward pass of the KL estimate."""
    engine_options: dict[str, Any] = Field(default_factory=dict)
    """Options that replace those of the same name in engine_options for the engine that training and evaluation draw
    with. It may run beside the service's engine on the same machine, and must fit into the memory that is left."""


class GateSettings(Section):
    """What a version must show before it is promoted. Win rates and divergences are read on their 95 % bounds."""

    margin: float = Field(0.03, ge=0, lt=0.5)
    """How much of the win rate against what answers requests now may be lost at most: the version answers with the
    smallest k whose best-of-k wins at least half of these comparisons less this margin, by its lower bound."""
    min_saved: float = Field(0.05, ge=0, lt=1)
    """The least share of tokens per answer that must be saved at that k. A version that needs as many draws as the
    distilled version which answers now is promoted, too, if it is known to be better, unless it takes more tokens by
    this share."""
    min_win_rate: float = Field(0.5, ge=0, le=1)
    """The least win rate of one draw against one draw of the base, by its lower bound."""
    max_p_value: float = Field(0.05, gt=0, le=1)
    """The most that chance may explain of a win rate above `min_win_rate`, by a test that needs no large sample."""
    min_gain: float = 0.0
    """The least gain in the objective over the base, win rate for divergence, in nats, by its lower bound."""
    max_kl_factor: float = Field(2.0, gt=0)
    """The most divergence from the base, by its upper bound, as a multiple of best-of-n's log n - (n-1)/n."""
    max_truncated: float = Field(0.05, ge=0, le=1)
    """By how much the share of answers that are cut off at max_tokens may be higher than the base's."""
    length_ratio: tuple[float, float] = (0.5, 2.0)
    """The least and the greatest mean length over the base's."""
    min_distinct_ratio: float = Field(0.5, ge=0)
    """The least share of different pairs of tokens (distinct-2) over the base's."""


class LoopSettings(Section):
    """When the daemon trains."""

    min_groups: int = Field(1000, ge=1)
    """Clean groups of the current champion, not yet trained on, that start a round. No round starts by itself
    while one draw answers. After a round that the gate refused, the next one waits for as many groups as that round
    was trained on."""
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
        from bonbon.store.database import with_password

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
    return f"{key}{shown_input(item)}: {item['msg']}"


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
