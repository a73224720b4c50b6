"""Defines every setting of bonbon.

Values come from arguments, from the environment (`BONBON_MODEL`, `BONBON_SERVICE__PORT`, ...) and from the TOML file
that `BONBON_CONFIG` names (default: `bonbon.toml`, if it exists); the first source that gives a value wins. An
environment variable may name a file instead: the variable's name then ends in `_FILE`, and its value is the path. An
unknown key is an error, in the environment as well as in the file.
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
from bonbon.files.secret_files import SUFFIX, with_files
from bonbon.shown_values import describe_problems

ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#@\s]+")
PREFIX, CONFIG = "BONBON_", "BONBON_CONFIG"
ALL_LINEAR = "all-linear"
"""The value of `train.lora_targets` that stands for every linear layer but the output layer."""
MOST_PROMPTS = 4096
"""The largest `max_prompts`: more prompts would take too long to read on the event loop."""
# Kubernetes sets these variables in every pod of a namespace that has a Service whose name begins with "bonbon".
_SERVICE_LINK = re.compile(r".*(_SERVICE_HOST|_SERVICE_PORT(_.*)?|_PORT(_\d+_.*)?)")


class Section(BaseModel):
    """A group of settings that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RewardSpec(BaseModel):
    """Names a kind of reward and its options.

    A string is shorthand for `kind:target`, an http(s) URL, or the directory or hub name of a model.

    Every kind has a `target`, such as a model, a URL or a callable. The class that implements the kind documents its
    other options.
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
        """The keyword arguments for the kind's options: `target`, if it is set, and every extra key."""
        target = {"target": self.target} if self.target else {}
        return target | dict(self.model_extra or {})


class Limits(Section):
    """Rate limits of every tenant that sets none of its own. Without a value, a rate is not limited."""

    requests_per_minute: int | None = Field(None, ge=1)
    """Maximum number of requests per minute."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Maximum number of tokens per minute: those generated, counted over all candidates, and those of prompts that are
    read for their tokens or log-probabilities."""


class Tenant(Limits):
    """Settings of one tenant. A limit that the tenant does not set is taken from `service.limits`."""

    reward: str | None = None
    """Name of the reward in `service.rewards` that ranks this tenant's candidates. By default the service's reward
    does."""

    def limits(self, default: Limits) -> Limits:
        """Returns this tenant's limits, taking those that it does not set from `default`."""
        return default.model_copy(update=self.model_dump(include=self.model_fields_set & set(Limits.model_fields)))


class ServiceSettings(Section):
    """Settings of `bonbon serve`, which answers requests. They set the address to listen on, how many requests are
    accepted and for how long they may wait, who may send them, what happens to the log while the database is
    unavailable, and how a distilled version is monitored while it answers."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8080, ge=0, le=65535)
    """Port to listen on; 0 selects a free port."""
    alias: str = "bonbon"
    """Model name under which clients always reach the current champion."""
    k: int | None = Field(None, ge=1, le=128)
    """Number of candidates that a distilled champion samples; the best of them is the answer. By default this is the
    number that the version's evaluation found necessary. With 1 every answer is a single candidate, whatever the loss
    of quality."""
    max_best_of: int = Field(32, ge=1, le=128)
    """Largest n that a request may ask for."""
    default_max_tokens: int = Field(256, ge=1)
    """max_tokens of a request that does not set it. It is reduced where the rest of the model's context is shorter."""
    max_prompts: int = Field(64, ge=1, le=MOST_PROMPTS)
    """Maximum number of prompts in one request to /v1/completions."""
    max_tokens_in_flight: int = Field(2**20, ge=1)
    """Maximum number of tokens that may be generated for all requests at once, counted as candidates times max_tokens.
    Requests beyond that wait."""
    max_waiting: int = Field(256, ge=0)
    """Maximum number of requests that may wait; further requests are refused with a 503."""
    max_wait: float = Field(30.0, gt=0)
    """Seconds that a request may wait before it is refused with a 503."""
    stream_buffer_bytes: int = Field(256 * 2**20, ge=2**16)
    """Bytes of streamed answers, over all streams, that may wait for clients to read them. Beyond that, the stream with
    the most unread bytes is cut off."""
    send_timeout: float = Field(60.0, gt=0)
    """Seconds that a client may go without reading any of the data that is ready for it before its connection is
    closed."""
    limits: Limits = Limits()
    """Rate limits of every tenant that has none of its own."""
    rewards: dict[str, RewardSpec] = Field(default_factory=dict)
    """Additional rewards, by the name that appears in groups and metrics."""
    tenants: dict[str, Tenant] = Field(default_factory=dict)
    """Rate limits and the name of the reward in service.rewards for individual tenants, by the tenant's name."""
    retention_days: float | None = Field(None, gt=0)
    """Age in days at which groups are deleted, together with the training snapshots that contain them. By default
    groups are kept."""
    retention_poll: float = Field(3600.0, gt=0)
    """Seconds between checks for groups that have reached this age."""
    spool_bytes: int = Field(256 * 2**20, ge=0)
    """Maximum size of the spool, data_dir/spool, which keeps logged groups while the database is unavailable; 0 turns
    the spool off."""
    spool_full: Literal["refuse", "drop"] = "refuse"
    """What to do with an answer that can be stored neither in the database nor in the spool: `refuse` it with a 503, or
    send it and `drop` its log entry, which a metric counts."""
    max_body_bytes: int = Field(4 * 2**20, ge=1024)
    """Maximum size of a request body; larger bodies are refused with a 413."""
    max_header_bytes: int = Field(32 * 1024, ge=1024)
    """Maximum size of the request line and headers; larger ones are refused with a 431."""
    header_timeout: float = Field(10.0, gt=0)
    """Seconds that a client has to send the request line and headers, counted from the moment it connects."""
    body_timeout: float = Field(30.0, gt=0)
    """Seconds that a client has to send the body of a request after its headers."""
    max_connections: int = Field(2048, ge=1)
    """Maximum number of open connections. When it is reached, a new connection replaces the one that has waited longest
    for its client; if every connection is being answered, requests on new connections are refused with a 503."""
    max_connections_per_client: int | None = Field(None, ge=1)
    """Maximum number of open connections from one client address (IPv6 clients are counted by their /64 network). The
    default is three quarters of max_connections. Behind a proxy, all clients share the proxy's address."""
    reward_deadline: float = Field(30.0, gt=0)
    """Seconds that the reward has to score the candidates. After that the request is answered with an unranked
    candidate and marked as degraded."""
    audit_budget: float = Field(0.05, ge=0, le=1)
    """Maximum number of tokens that audits may generate, as a share of the tokens that a distilled champion saves. An
    audit compares one of the champion's answers with best-of-n of the base in the background; this setting determines
    how many answers are audited."""
    audit_fraction: float | None = Field(None, ge=0, le=1)
    """Share of the champion's answers to audit, whatever it costs. By default audit_budget determines the share."""
    win_rate_floor: float = Field(0.45, ge=0, le=1)
    """Minimum live win rate against best-of-n of the base. When the win rate is significantly lower, the champion
    samples twice as many candidates; when that would be n or more, the service falls back to best-of-n. 0 turns this
    off. If service.k fixes the number of candidates, the service falls back to best-of-n when the live win rate against
    one candidate of the base is significantly lower than 0.5."""
    audit_queue: int = Field(256, ge=1)
    """Maximum number of audits that may wait; further audits are dropped and counted."""
    registry_poll: float = Field(0.5, gt=0)
    """Seconds between checks of the registry for a promoted version."""
    drain_timeout: float = Field(30.0, gt=0)
    """Seconds that running requests have to finish when the service stops."""
    ping_interval: float = Field(5.0, gt=0)
    """Seconds between the comments that keep a stream open while candidates are being generated."""
    traces: Literal["off", "otlp"] = "off"
    """`otlp` sends a trace of each request to the endpoint in OTEL_EXPORTER_OTLP_ENDPOINT; it needs
    bonbon-serve[otel]."""
    auth: Literal["auto", "on", "off"] = "auto"
    """Whether requests need an API key. `auto` requires one unless the service listens on a loopback address only and
    no key has ever been created."""
    cors_origins: list[str] = Field(default_factory=list)
    """Origins such as `https://app.example.com` whose web pages may call `/v1` from a browser; `*` allows all. By
    default none may."""
    keys_poll: float = Field(1.0, gt=0)
    """Seconds until the service notices that a key was created or revoked."""
    api_key: SecretStr | None = None
    """An API key of the unnamed tenant, valid for completions and feedback, in addition to the keys that `bonbon keys
    create` creates."""
    admin_key: SecretStr | None = None
    """An API key for /admin. While no key of any kind exists and the service listens on a loopback address only,
    requests from this machine need none."""

    @field_validator("api_key", "admin_key")
    @classmethod
    def _not_empty(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not key.get_secret_value().strip():
            raise ValueError("the key is empty, so no request could match it: set a key, or remove the setting")
        return key

    @field_validator("cors_origins")
    @classmethod
    def _as_browsers_write_them(cls, origins: list[str]) -> list[str]:
        if not all(origin == "*" or ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError(
                "write each origin with its scheme and without a slash or a path at the end, such as "
                "https://app.example.com, or write * to allow all"
            )
        return [origin.lower() for origin in origins]

    @model_validator(mode="after")
    def _tenants_name_known_rewards(self) -> "ServiceSettings":
        for tenant, own in self.tenants.items():
            if own.reward is not None and own.reward not in self.rewards:
                known = ", ".join(map(repr, self.rewards)) or "none"
                raise ValueError(
                    f"tenants.{tenant}.reward is {own.reward!r}, which is not in service.rewards; known rewards are: "
                    f"{known}"
                )
        return self


class TrainSettings(Section):
    """Settings of the trainer, which `bonbon distill` and the daemon `bonbon loop` run. They set the loss, the
    optimiser, how the policy goes on learning from its own candidates, which groups it may learn from, and which
    hardware it uses."""

    loss: Literal["gvpo", "vbon", "bond", "bonbon", "paper", "sft", "ipo", "dpo"] = "gvpo"
    """The loss function. `gvpo`, `vbon` and `bond` learn from all candidates of a group; `vbon` and `bond` target the
    best-of-n distribution itself. The others compare two candidates: `bonbon` and `paper` are the BoNBoN loss with its
    terms scaled by their variance and as printed in the paper. Losses other than `gvpo`, `bonbon` and `paper` exist for
    comparison."""
    sft_weight: float = Field(1.0, ge=0)
    """Weight of a supervised term in `gvpo` that keeps the policy close to the base. The term is left out while the
    policy learns from its own candidates."""
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight of the supervised term in `bonbon` (default 0.5) and in `paper` (default 0.005)."""
    dpo_beta: float = Field(0.1, gt=0)
    """The beta of the `dpo` loss."""
    kl: float | None = Field(None, gt=0)
    """Limit of a trained policy's divergence from the base, in nats. The default is the divergence of best-of-n, log n
    - (n-1)/n. While the policy learns from its own candidates, it aims at 1.1 times the limit or 1.1 times
    best-of-n's divergence, whichever is lower, and policies measured at up to 1.1 times the limit are kept."""
    method: Literal["lora", "full"] = "lora"
    """Whether to train a LoRA adapter or all weights."""
    lora_rank: int = Field(16, ge=1)
    """Rank of the LoRA adapter."""
    lora_alpha: int = Field(32, ge=1)
    """Scale of the LoRA adapter: its output is multiplied by lora_alpha / lora_rank."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability of the LoRA adapter's inputs during training."""
    lora_targets: str = ALL_LINEAR
    """Modules that get an adapter: a comma-separated list of module names, or `all-linear` for every linear layer of
    the language model for which engines can serve an adapter. In a mixture of experts these are the attention layers
    and, in some models, the shared experts, which process every token."""
    lora_output_layer: bool | None = None
    """Whether the output layer gets an adapter as well. By default it does if `lora_targets` is `all-linear` and the
    engine is `embedded`. vLLM serves such adapters for some models only, such as Llama and Qwen3, and computes no
    log-probabilities of prompts with them."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate. By default a short search selects the rate with the largest gain on validation groups."""
    epochs: float = Field(1.0, gt=0)
    """Number of passes over the training groups before the policy learns from its own candidates."""
    batch_size: int = Field(16, ge=1)
    """Groups per optimiser step, summed over all processes and forward passes."""
    micro_batch_size: int = Field(4, ge=1)
    """Groups per forward pass of each process. It must divide batch_size. Reduce it when memory runs out."""
    gradient_checkpointing: bool = False
    """Whether to recompute activations in the backward pass instead of storing them. This takes about a third longer
    and needs much less memory."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises to its peak; after them it falls linearly to 0."""
    max_grad_norm: float = Field(4.0, gt=1)
    """Maximum gradient norm, as a multiple of the median norm of recent steps. Larger gradients are scaled down to
    it."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the AdamW optimiser."""
    refine: Literal["auto", "on", "off"] = "auto"
    """Whether the policy then learns from its own candidates. `auto` does so if a reward is configured, the engine
    can load the trained weights, there are enough validation prompts, and `refine_tokens` are enough for one step; `on`
    refuses to train if one of these is missing."""
    refine_tokens: int = Field(2_000_000, ge=1)
    """Number of tokens to generate in this phase, those for validation prompts included. The phase ends when they are
    used up."""
    refine_draws: int = Field(8, ge=2)
    """Candidates sampled for each prompt in this phase."""
    refine_replay: int = Field(2, ge=0)
    """Optimiser steps on earlier candidates after each step on new ones."""
    refine_learning_rate: float | None = Field(None, gt=0)
    """Learning rate at the beginning of this phase. The default is three tenths of the rate used for logged groups, or
    of the middle one of the rates tried there if that is higher and training continues a distilled version. It falls
    linearly to 0 as `refine_tokens` are used up."""
    validation_draws: int = Field(256, ge=2)
    """Candidates sampled over all validation prompts whenever policies are compared by what they generate. Each prompt
    gets at least two. While the policy learns from its own candidates, three times as many more are sampled before a
    policy counts as the best or is moved back to the limit."""
    rescore: bool = True
    """Whether a round first lets the newest reward score groups that were scored by another reward or by another
    version of it. It scores the newest groups first, until `loop.min_groups` groups of the base and of the initial
    version have its scores."""
    base_prompts: int = Field(1000, ge=0)
    """Maximum number of prompts for which the base samples candidates once a distilled version answers requests.
    Training compares candidates with the base's, so it cannot use a prompt that only a version has answered."""
    draws_in_flight: int = Field(32, ge=1)
    """Prompts for which training samples candidates concurrently; evaluation does so for at most 16 of them. If the
    engine also answers requests, keep this well below the number of prompts that the engine can process at once."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """`auto` computes in bf16 on a GPU that supports it and in float32 elsewhere; `no` always computes in float32."""
    seed: int = Field(0, ge=0)
    """Seed of the random numbers in training and evaluation."""
    checkpoint_every: int = Field(100, ge=1)
    """Optimiser steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of checkpoints to keep; older ones are deleted."""
    tenants: list[str] | None = None
    """Tenants whose groups training may use. By default all groups must belong to one tenant, because the trained
    version answers every tenant's requests."""
    min_pairs: int = Field(64, ge=1)
    """Minimum number of training groups; training refuses to start with fewer."""
    max_sampler_gap: float = Field(0.1, gt=0)
    """Maximum by which the engine's log-probabilities may exceed the trainer's, in nats per answer, on average and
    beyond the rounding error of 16-bit arithmetic. A larger gap means that a different policy sampled the groups."""
    held_out_fraction: float = Field(0.1, gt=0, lt=0.5)
    """Share of conversations reserved for testing. No round trains on them or selects anything by them."""
    validation_fraction: float = Field(0.1, ge=0, lt=0.5)
    """Share of conversations reserved for selecting learning rates, steps and policies. No round trains on them."""
    threads: int = Field(0, ge=0)
    """Number of CPU threads that torch uses; 0 keeps torch's default."""
    processes: int = Field(1, ge=1)
    """Number of training processes on this machine, one for each GPU. They share every step."""
    sharding: Literal["none", "full"] = "none"
    """`none` keeps the whole model in every process; `full` shards weights, gradients and optimiser state over the
    processes (FSDP2)."""
    launcher: str = ""
    """Command that starts the training processes. By default torchrun starts them on this machine."""


class EvaluateSettings(Section):
    """Settings of `bonbon evaluate` and of the evaluation after each training, which measure a version on test
    prompts."""

    prompts: int = Field(400, ge=2)
    """Maximum number of test prompts for which candidates are sampled."""
    draws: int | None = Field(None, ge=1)
    """Candidates that the version samples for each prompt; best-of-k is measured for every k up to this number. By
    default, best-of-k is measured up to k = n, and the version samples n candidates, or up to 2 n if there are fewer
    test prompts than `evaluate.prompts`."""
    batch_size: int = Field(32, ge=1)
    """Sequences per forward pass when the KL divergence is estimated."""
    engine_options: dict[str, Any] = Field(default_factory=dict)
    """Options that override engine_options for the engine that training and evaluation sample with. That engine may run
    next to the service's on the same machine and must fit into the memory that is left."""


class GateSettings(Section):
    """Conditions that a version must meet before it is promoted. Win rates and divergences are judged by their 95 %
    confidence bounds. `bonbon models show` prints which conditions a version met."""

    opponent: Literal["best_of_n", "served"] = "best_of_n"
    """The policy that a version must match, within `margin`. `best_of_n` is best-of-n of the base. `served` is the
    policy that answers requests now, which may be better than that: a promotion then loses at most `margin` against it,
    but the number of draws rarely falls to one."""
    margin: float = Field(0.03, ge=0, lt=0.5)
    """Maximum loss in win rate against `opponent`. The version answers with the smallest k whose best-of-k has a win
    rate of at least 0.5 less this margin, by its lower bound."""
    min_saved: float = Field(0.05, ge=0, lt=1)
    """Minimum share of tokens per answer that the version must save at that k. A version that needs as many candidates
    as the distilled version that answers now is promoted as well if it is significantly better, unless it uses more
    tokens by this share."""
    min_win_rate: float = Field(0.5, ge=0, le=1)
    """Minimum win rate of one candidate against one candidate of the base, by its lower bound."""
    max_p_value: float = Field(0.05, gt=0, le=1)
    """Maximum p-value of the hypothesis that the win rate is not above `min_win_rate`, by a test that is valid for
    small samples."""
    min_gain: float = 0.0
    """Minimum gain over the base in the objective, which weighs win rate against divergence, in nats, by its lower
    bound."""
    max_kl_factor: float = Field(2.0, gt=0)
    """Maximum divergence from the base, by its upper bound, as a multiple of the divergence of best-of-n, log n -
    (n-1)/n."""
    max_truncated: float = Field(0.05, ge=0, le=1)
    """Maximum by which the share of answers cut off at max_tokens may exceed the base's."""
    length_ratio: tuple[float, float] = (0.5, 2.0)
    """Minimum and maximum of the mean answer length divided by the base's."""
    min_distinct_ratio: float = Field(0.5, ge=0)
    """Minimum of the share of distinct token pairs (distinct-2) divided by the base's."""


class LoopSettings(Section):
    """Settings of the daemon `bonbon loop`, which trains a new version when enough groups have been logged, evaluates
    it and promotes it if it passes the gate."""

    min_groups: int = Field(1000, ge=1)
    """Number of clean groups of the current champion, not yet trained on, that start a round. No round starts by itself
    while the champion answers with a single candidate. After a round that the gate refused, the next round waits for as
    many groups as that round was trained on."""
    poll: float = Field(30.0, gt=0)
    """Seconds between checks of the pair log."""
    auto_promote: bool = True
    """Whether to promote a version as soon as it passes the gate. Otherwise the version stays approved until you run
    `bonbon models promote`."""
    lease_seconds: float = Field(60.0, gt=0)
    """Seconds after which the lease of a trainer that has died expires. Another trainer can start after that, once it
    has watched the lease for half of that time. A running trainer renews its lease."""


class Settings(BaseSettings):
    """Settings that all commands share: the base model, the reward, the engine, and where data is stored."""

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
    """A second reward that is never trained on and is used for evaluation only."""
    n: int = Field(8, ge=2, le=128)
    """Number of candidates that best-of-n samples."""
    engine: str = "embedded"
    """The engine that generates candidates: `embedded`, `vllm`, `remote` (a fleet of vLLM servers) or `fake` (for
    tests)."""
    engine_options: dict[str, Any] = Field(default_factory=dict)
    """Options that are passed to the engine. Each engine documents its own."""
    end_tokens: list[str | int] | None = None
    """Tokens, or their ids, that end an answer, such as ["</s>"]. By default those in the model's files."""
    data_dir: Path = Path("data")
    """Directory of the registry's files, the training runs and the default database."""
    database_url: str = ""
    """SQLAlchemy URL of the pair log and the registry. The default is an SQLite file in data_dir."""
    database_password: SecretStr | None = None
    """Password for database_url, if the URL contains none."""
    database_timeout: float = Field(10.0, gt=0)
    """Seconds that one call to the database may take, such as connecting, a statement, a commit, or waiting for a lock.
    After that the connection is closed, and a group that could not be stored waits in the spool."""
    database_bulk_timeout: float = Field(600.0, gt=0)
    """Seconds that a call that reads or deletes many groups may take: statistics, exports, snapshots, purges,
    migrations."""
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
        """The URL of the database, with the default and the password filled in."""
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
        """The root directory of the registry's content-addressed files."""
        return self.data_dir.absolute() / "versions"

    @property
    def spool_dir(self) -> Path:
        """The directory of the groups that the database has not accepted yet."""
        return self.data_dir.absolute() / "spool"

    @property
    def runs_dir(self) -> Path:
        """The directory of the training runs."""
        return self.data_dir.absolute() / "runs"


class _Environment(EnvSettingsSource):
    def _load_env_vars(self) -> Mapping[str, str | None]:
        ours = {name: value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}
        return {name.lower(): value for name, value in with_files(ours).items()}


def load_settings(**overrides: Any) -> Settings:
    """Loads the settings from all sources; `overrides` take precedence.

    Raises:
        UserError: A key or value is invalid. The message names each of them and never shows a secret.
    """
    config = os.environ.get(CONFIG)
    if config is not None and not Path(config).is_file():
        raise UserError(f"{CONFIG} is {config!r}, but there is no such file: name a TOML file, or unset the variable")
    if unknown := _unknown_variables():
        raise UserError(
            f"settings: {', '.join(unknown)}: there is no such setting; separate a section from its setting by two "
            f"underscores, as in {PREFIX}SERVICE__PORT"
        )
    try:
        return Settings(**{key: value for key, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise UserError("settings: " + describe_problems(error, unknown="there is no such setting")) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"settings: {config or 'bonbon.toml'} is not valid TOML: {error}") from error
    except SettingsError as error:
        raise UserError(f"settings: {error}: {error.__cause__}; write lists and objects as JSON") from error


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
