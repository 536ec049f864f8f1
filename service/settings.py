"""Settings: what an operator may choose, checked at the start in lines that name the setting.

Read from the environment (``CONVOY_`` prefix, ``__`` between group and name), a ``.env`` file and mounted
secret files. This module knows names, defaults, bounds and contradictions; it builds nothing from them.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path  # noqa: TC003 - pydantic reads the annotation
from typing import TYPE_CHECKING, Literal, get_origin
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo  # noqa: TC002 - kept beside the models it describes
from pydantic_settings import BaseSettings, SettingsConfigDict

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "CONVOY_"
ENV_FILE = ".env"
DELIMITER = "__"
NOT_SETTINGS = re.compile(
    r"CONVOY_TEST_|CONVOY_SOAK$|CONVOY_CACHE$|CONVOY_MAVEN_|CONVOY_REQUIRE_|CONVOY_HELM$|CONVOY_KUBECONFORM$"
)
"""Variables of the project's own tests and tools."""
SERVICE_LINK = re.compile(r"CONVOY(_[A-Z0-9_]+)?_(PORT|SERVICE_HOST|SERVICE_PORT)(_|$)")
"""What Kubernetes sets in every pod for a Service called ``convoy…`` unless ``enableServiceLinks`` is false."""
DEFAULT_BASE_URL = "https://dashscope-intl.aliyuncs.com/api/v2/apps/protocols/compatible-mode/v1"
INTENT_FRESH_SECONDS = 2.0
"""How old a ledger's intent may be when its request starts."""
LATE_LANDING_SECONDS = 5.0
"""How long after a request was given up the API may still store it."""
MAX_ITEMS_PER_REQUEST = 20
ACCEPT_GAP_AT_MOST = timedelta(days=1)


class SettingsError(Exception):
    """The settings cannot be used; the message is one line that names the setting and the rule."""


class Group(BaseModel):
    """A group of settings: an unknown name in it is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=True, hide_input_in_errors=True, allow_inf_nan=False)


class KafkaSettings(Group):
    """Where events come from and outcomes go to."""

    bootstrap_servers: str = Field(
        "localhost:9092", min_length=1, description="Brokers to ask first, host:port, comma-separated."
    )
    group_id: str = Field("convoy", min_length=1, description="Consumer group; its replicas share the partitions.")
    events_topic: str = Field("conversation.events", min_length=1, description="Topic of message events.")
    reply_topic: str = Field("conversation.replies", min_length=1, description="Topic of replies.")
    dead_letter_topic: str = Field("conversation.dead-letters", min_length=1, description="Topic of dead letters.")
    ledger_topic: str = Field(
        "", description="Topic of the ledger: exactly one copy of each message, crashes included; empty: off."
    )
    ledger_accept_gap: AwareDatetime | None = Field(
        None,
        description="Dangerous: until this time (RFC 3339, at most a day ahead) go on where the ledger does not reach "
        "back to what is not settled; what was being sent then may be stored twice.",
    )
    group_instance_id: str = Field("", description="Static membership: one fixed name a replica; empty: dynamic.")
    session_timeout_seconds: float = Field(
        45, ge=1, le=1800, description="Without a heartbeat for so long, the group hands the partitions on."
    )
    heartbeat_seconds: float = Field(
        3, gt=0, le=600, description="Between heartbeats; at most a third of the session time-out."
    )
    rebalance_timeout_seconds: float = Field(
        60, ge=1, le=3600, description="How long a rebalance waits for a member that drains."
    )
    commit_interval_seconds: float = Field(
        1, gt=0, le=60, description="Between commits of positions: what a crash may repeat."
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How brokers are spoken to."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field("PLAIN", description="Used with SASL_*.")
    sasl_username: str = Field("", description="User of PLAIN and SCRAM.")
    sasl_password: SecretStr = Field(SecretStr(""), description="Password of PLAIN and SCRAM.")
    ssl_ca_file: Path | None = Field(None, description="Certificate authorities to trust; default: the system's.")
    ssl_cert_file: Path | None = Field(None, description="Client certificate.")
    ssl_key_file: Path | None = Field(None, description="Its key.")
    ssl_key_password: SecretStr = Field(SecretStr(""), description="Password of an encrypted key.")

    @model_validator(mode="after")
    def _times_fit(self) -> KafkaSettings:
        if self.heartbeat_seconds * 3 > self.session_timeout_seconds:
            raise ValueError("KAFKA__HEARTBEAT_SECONDS must be at most a third of KAFKA__SESSION_TIMEOUT_SECONDS")
        topics = [self.events_topic, self.reply_topic, self.dead_letter_topic, self.ledger_topic]
        if len(set(topics)) < len(topics):
            raise ValueError(
                "KAFKA__EVENTS_TOPIC, KAFKA__REPLY_TOPIC, KAFKA__DEAD_LETTER_TOPIC and KAFKA__LEDGER_TOPIC must differ"
            )
        if self.security_protocol.startswith("SASL") and not (
            self.sasl_username and self.sasl_password.get_secret_value()
        ):
            raise ValueError("KAFKA__SECURITY_PROTOCOL with SASL needs KAFKA__SASL_USERNAME and KAFKA__SASL_PASSWORD")
        if self.ledger_accept_gap is not None and self.ledger_accept_gap > datetime.now(UTC) + ACCEPT_GAP_AT_MOST:
            raise ValueError("KAFKA__LEDGER_ACCEPT_GAP must be at most a day ahead: it is for one gap, not for all")
        if (self.ssl_cert_file is None) != (self.ssl_key_file is None):
            raise ValueError("KAFKA__SSL_CERT_FILE and KAFKA__SSL_KEY_FILE go together")
        return self


class ApiSettings(Group):
    """The Conversations API."""

    base_url: str = Field(DEFAULT_BASE_URL, description="Up to and without /conversations.")
    key: SecretStr = Field(
        SecretStr(""), description="Bearer key. For *.aliyuncs.com hosts DASHSCOPE_API_KEY serves as well."
    )
    key_file: Path | None = Field(None, description="File that holds the key, instead of KEY.")
    connect_timeout_seconds: float = Field(5, gt=0, le=60, description="For name, TCP and TLS together.")
    total_timeout_seconds: float = Field(20, gt=0, le=600, description="For a whole attempt, slow answers included.")
    ca_file: Path | None = Field(None, description="Certificate authorities to trust; default: the system's.")
    proxy: str = Field("", description="HTTP proxy for the API, http://host:port.")
    extra_headers: dict[str, str] = Field(default_factory=dict, description="Sent with each request; a JSON object.")

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be an http(s) URL without query")
        return value.rstrip("/")

    @field_validator("extra_headers")
    @classmethod
    def _no_key_in_headers(cls, value: dict[str, str]) -> dict[str, str]:
        if any(name.lower() == "authorization" for name in value):
            raise ValueError("the key belongs in API__KEY, not in a header that would be shown")
        return value

    @model_validator(mode="after")
    def _one_key(self) -> ApiSettings:
        if self.key.get_secret_value() and self.key_file is not None:
            raise ValueError("API__KEY and API__KEY_FILE exclude each other")
        if self.key_file is not None:
            try:
                text = self.key_file.read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ValueError(f"API__KEY_FILE cannot be read: {error.strerror}") from None
            except UnicodeDecodeError:
                raise ValueError("API__KEY_FILE is no text") from None
            self.key = SecretStr(text)
        host = urlsplit(self.base_url).hostname or ""
        if not self.key.get_secret_value() and (host == "aliyuncs.com" or host.endswith(".aliyuncs.com")):
            self.key = SecretStr(os.environ.get("DASHSCOPE_API_KEY", ""))
        key = self.key.get_secret_value()
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("API__KEY holds a character that no header may carry")
        return self


class BatchSettings(Group):
    """When a batch goes."""

    max_items: int = Field(20, ge=1, le=MAX_ITEMS_PER_REQUEST, description="Items a request; the API takes 20 at most.")
    window_seconds: float = Field(
        1,
        ge=0,
        le=3600,
        description="How long the first item waits for company; 0: only while the conversation is busy.",
    )
    max_bytes: int = Field(
        1 << 20, ge=1024, le=64 << 20, description="Bytes a request; a larger single item travels alone."
    )


class DeliverySettings(Group):
    """How requests are made, and how patiently."""

    max_concurrency: int = Field(256, ge=1, le=10_000, description="Requests in flight at most.")
    start_concurrency: int = Field(32, ge=1, le=10_000, description="Requests in flight to begin with.")
    max_requests_per_second: float | None = Field(
        None, gt=0, description="Fixed limit; none: what the API bears is found out."
    )
    max_attempts: int = Field(
        8, ge=1, le=1000, description="Failures, while others get through, before one conversation is given up."
    )
    max_age_seconds: float = Field(
        900, gt=0, description="How long they must have gone on, besides; what the circuit was open does not count."
    )
    backoff_initial_seconds: float = Field(0.5, gt=0, le=60, description="First back-off, before jitter.")
    backoff_max_seconds: float = Field(60, gt=0, le=3600, description="Longest back-off.")
    settle_seconds: float | None = Field(
        None, gt=0, description="When a request unheard of cannot land any more; none: API total + 7."
    )
    read_cursor_first: bool = Field(
        False, description="Ask a cold conversation for its newest item before writing to it."
    )
    verdicts: dict[
        str,
        Literal[
            "busy", "throttled", "transient", "operator", "conversation_not_found", "forbidden", "too_large", "rejected"
        ],
    ] = Field(
        default_factory=dict,
        description="Verdicts by error code of the API, for vendors not known here; a JSON object.",
    )

    @field_validator("verdicts")
    @classmethod
    def _lower_case(cls, value: dict[str, str]) -> dict[str, str]:
        return {code.lower(): verdict for code, verdict in value.items()}


class LimitsSettings(Group):
    """What may be held in memory."""

    max_buffered_events: int = Field(
        50_000, ge=100, le=10_000_000, description="Events read and without outcome; above, partitions pause."
    )
    max_buffered_bytes: int = Field(128 << 20, ge=1 << 20, description="Their bytes.")
    max_uncommitted_events: int = Field(
        500_000, ge=100, description="Events above the oldest one without outcome, over all partitions."
    )
    max_known_conversations: int = Field(100_000, ge=0, description="Conversations whose newest item id is remembered.")


class ReplySettings(Group):
    """Replies."""

    failures: bool = Field(False, description="Whether a dead-lettered event gets a reply too, with status failed.")
    allowed_topics: str = Field("", description="Topics a requester may name for its reply, comma-separated.")


class DeadLetterSettings(Group):
    """Dead letters."""

    header_style: Literal["convoy", "connect", "spring"] = Field(
        "convoy", description="Headers beside dlq.*: none, Kafka Connect's, or Spring Kafka's."
    )
    flood_share: float | None = Field(
        None, gt=0, le=1, description="Greatest share of dead letters within the window; above, consumption stops."
    )
    flood_run: int | None = Field(
        None, ge=1, description="Most dead letters with no delivery between; above, consumption stops."
    )
    flood_window_seconds: float = Field(60, ge=1, le=86_400, description="Window of the share.")
    flood_counts_invalid: bool = Field(False, description="Whether records that are no events count too.")


class OpsSettings(Group):
    """The HTTP endpoint for operators."""

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - a pod is scraped from outside
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on.")
    ready_needs_api: bool = Field(False, description="Whether an open circuit fails readiness.")


class LogSettings(Group):
    """Logs."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is written.")
    format: Literal["json", "console"] = Field("json", description="One JSON object a line, or text for people.")

    @field_validator("level", "format", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


class ShutdownSettings(Group):
    """The end."""

    drain_seconds: float = Field(
        40, gt=0, le=3600, description="To finish what is in flight, on stop and on revocation."
    )


class Settings(BaseSettings):
    """All settings, by group."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        env_file=ENV_FILE,
        extra="ignore",
        nested_model_default_partial_update=True,
        hide_input_in_errors=True,
    )

    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    api: ApiSettings = Field(default_factory=ApiSettings)
    batch: BatchSettings = Field(default_factory=BatchSettings)
    delivery: DeliverySettings = Field(default_factory=DeliverySettings)
    limits: LimitsSettings = Field(default_factory=LimitsSettings)
    reply: ReplySettings = Field(default_factory=ReplySettings)
    dead_letter: DeadLetterSettings = Field(default_factory=DeadLetterSettings)
    ops: OpsSettings = Field(default_factory=OpsSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    shutdown: ShutdownSettings = Field(default_factory=ShutdownSettings)

    @model_validator(mode="after")
    def _groups_fit(self) -> Settings:
        total, drain = self.api.total_timeout_seconds, self.shutdown.drain_seconds
        rebalance = self.kafka.rebalance_timeout_seconds
        if self.api.connect_timeout_seconds > total:
            raise ValueError("API__CONNECT_TIMEOUT_SECONDS must be at most API__TOTAL_TIMEOUT_SECONDS")
        if not total < drain:
            raise ValueError(
                f"SHUTDOWN__DRAIN_SECONDS ({drain:g}) must exceed API__TOTAL_TIMEOUT_SECONDS ({total:g}): "
                "an attempt in flight must be able to end"
            )
        if not drain < rebalance:
            raise ValueError(
                f"KAFKA__REBALANCE_TIMEOUT_SECONDS ({rebalance:g}) must exceed SHUTDOWN__DRAIN_SECONDS ({drain:g}): "
                "a member drains before it rejoins"
            )
        if self.delivery.backoff_initial_seconds > self.delivery.backoff_max_seconds:
            raise ValueError("DELIVERY__BACKOFF_INITIAL_SECONDS must be at most DELIVERY__BACKOFF_MAX_SECONDS")
        self.delivery.start_concurrency = min(self.delivery.start_concurrency, self.delivery.max_concurrency)
        least = INTENT_FRESH_SECONDS + total + LATE_LANDING_SECONDS
        if self.kafka.ledger_topic and self.settle_seconds < least:
            raise ValueError(
                f"DELIVERY__SETTLE_SECONDS ({self.settle_seconds:g}) must be at least {least:g} with a ledger: "
                "a request sent late must have landed before it is called absent"
            )
        if self.limits.max_uncommitted_events < self.limits.max_buffered_events:
            raise ValueError("LIMITS__MAX_UNCOMMITTED_EVENTS must be at least LIMITS__MAX_BUFFERED_EVENTS")
        return self

    @property
    def allowed_reply_topics(self) -> frozenset[str]:
        """`REPLY__ALLOWED_TOPICS`, taken apart."""
        return frozenset(topic.strip() for topic in self.reply.allowed_topics.split(",") if topic.strip())

    @property
    def settle_seconds(self) -> float:
        """`DELIVERY__SETTLE_SECONDS`, resolved."""
        given = self.delivery.settle_seconds
        return INTENT_FRESH_SECONDS + self.api.total_timeout_seconds + LATE_LANDING_SECONDS if given is None else given


def load(*, need_key: bool = True) -> Settings:
    """Read and check the settings.

    Raises:
        SettingsError: with one line that names the setting and the rule it breaks.
    """
    _check_names({**dotenv_values(ENV_FILE), **os.environ})
    try:
        settings = Settings()
    except ValidationError as error:
        raise SettingsError("; ".join(_line(detail) for detail in error.errors(include_url=False))) from None
    if need_key and not settings.api.key.get_secret_value():
        raise SettingsError("CONVOY_API__KEY: no key (set it, or CONVOY_API__KEY_FILE)")
    return settings


def groups() -> dict[str, type[Group]]:
    """Every group's model, by its name."""
    found = {}
    for group, field in Settings.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, Group)
        found[group] = model
    return found


def variable(group: str, name: str) -> str:
    """The name of a setting in the environment."""
    return f"{PREFIX}{group}{DELIMITER}{name}".upper()


def variables() -> dict[str, FieldInfo]:
    """Every setting by the name of its variable."""
    return {
        variable(group, name): setting
        for group, model in groups().items()
        for name, setting in model.model_fields.items()
    }


def _check_names(environment: Mapping[str, str | None]) -> None:
    known = variables()
    for given in sorted(environment):
        name = given.upper()
        if not name.startswith(PREFIX) or NOT_SETTINGS.match(name):
            continue
        if name in known:
            if get_origin(known[name].annotation) is dict:
                _check_object(given, environment[given] or "")
            continue
        if SERVICE_LINK.match(name) and DELIMITER not in name:
            continue
        members = [setting for setting in known if setting.startswith(name + DELIMITER)]
        if members:
            raise SettingsError(f"{given}: is a group; set its members, such as {members[0]}")
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise SettingsError(f"{given}: there is no such setting{hint}")


def _check_object(name: str, text: str) -> None:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise SettingsError(f'{name}: must be a JSON object, such as {{"name": "value"}}')


def _line(detail: object) -> str:
    assert isinstance(detail, dict)
    where = [str(part) for part in detail["loc"]]
    name = PREFIX + DELIMITER.join(where).upper() if where else ""
    message = str(detail["msg"]).removeprefix("Value error, ")
    if "__" in message.split(" ")[0]:
        # A rule between settings names them itself.
        return PREFIX + message
    if detail["type"] == "extra_forbidden":
        message = "there is no such setting"
    return f"{name}: {message}" if name else message
