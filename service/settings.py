"""Settings: what an operator may choose, checked at the start in lines that name the setting.

Read from the environment (``CONVOY_`` prefix, ``__`` between group and name), a ``.env`` file and mounted
secret files. This module knows names, defaults, bounds and contradictions; it builds nothing from them.
"""

from __future__ import annotations

import difflib
import importlib.util
import ipaddress
import json
import os
import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_origin
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo  # noqa: TC002 - kept beside the models it describes
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "CONVOY_"
ENV_FILE = ".env"
DELIMITER = "__"
NOT_SETTINGS = re.compile(
    r"CONVOY_TEST_|CONVOY_SOAK$|CONVOY_CACHE$|CONVOY_MAVEN_|CONVOY_REQUIRE_|CONVOY_HELM$|CONVOY_KUBECONFORM$"
)
"""Variables of the project's own tests and tools."""
SECRETS_DIR = "CONVOY_SECRETS_DIR"
"""A folder of mounted secrets: files named like variables."""
SERVICE_LINK = re.compile(r"CONVOY(_[A-Z0-9_]+)?_(PORT|SERVICE_HOST|SERVICE_PORT)(_|$)")
"""What Kubernetes sets in every pod for a Service called ``convoy…`` unless ``enableServiceLinks`` is false."""
DEFAULT_BASE_URL = "https://dashscope-intl.aliyuncs.com/api/v2/apps/protocols/compatible-mode/v1"
INTENT_FRESH_SECONDS = 2.0
"""How old a ledger's intent may be when its request starts."""
LATE_LANDING_SECONDS = 5.0
"""How long after a request was given up the API may still store it."""
MAX_ITEMS_PER_REQUEST = 20
ACCEPT_GAP_AT_MOST = timedelta(days=1)
MAX_SECRET_BYTES = 64 << 10
"""Of a file that holds a key or a token; a larger one is not what it is taken for."""
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110, section 5.6.2."""
SENT_BY_US = frozenset(
    {"authorization", "host", "connection", "content-length", "content-type", "transfer-encoding", "user-agent"}
)
MASK = "**********"


class SettingsError(Exception):
    """The settings cannot be used; the message is one line that names the setting and the rule."""


class Group(BaseModel):
    """A group of settings: an unknown name in it is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=True, hide_input_in_errors=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object, info: ValidationInfo) -> object:
        """An empty variable is one not given, where a setting may have no value."""
        optional = type(None) in get_args(cls.model_fields[info.field_name or ""].annotation)
        return None if optional and value == "" else value


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
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        "PLAIN", description="Used with SASL_*."
    )
    sasl_username: str = Field("", description="User of PLAIN and SCRAM.")
    sasl_password: SecretStr = Field(SecretStr(""), description="Password of PLAIN and SCRAM.")
    sasl_oauth_token_file: Path | None = Field(
        None, description="OAUTHBEARER: file that holds the token; read again at each connection."
    )
    sasl_oauth_token_url: str = Field(
        "", description="OAUTHBEARER: token endpoint (https) for client credentials, instead of a file."
    )
    sasl_oauth_client_id: str = Field("", description="Client of the token endpoint.")
    sasl_oauth_client_secret: SecretStr = Field(SecretStr(""), description="Its secret.")
    sasl_oauth_scope: str = Field("", description="Scope asked for, if any.")
    sasl_oauth_ca_file: Path | None = Field(
        None, description="Certificate authorities of the token endpoint; default: the system's."
    )
    sasl_oauth_extensions: dict[str, str] = Field(
        default_factory=dict, description="SASL extensions that some brokers ask for; a JSON object."
    )
    ssl_ca_file: Path | None = Field(None, description="Certificate authorities to trust; default: the system's.")
    ssl_cert_file: Path | None = Field(None, description="Client certificate.")
    ssl_key_file: Path | None = Field(None, description="Its key.")
    ssl_key_password: SecretStr = Field(SecretStr(""), description="Password of an encrypted key.")

    @field_validator("bootstrap_servers")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        servers = [server.strip() for server in value.split(",")]
        for server in servers:
            host, colon, port = server.rpartition(":")
            if (
                not host
                or " " in host
                or not host.isprintable()
                or not colon
                or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= 65535)
            ):
                raise ValueError(f"{server or 'nothing'!r} is not host:port")
        return ",".join(servers)

    @field_validator("sasl_oauth_token_url")
    @classmethod
    def _is_safe_url(cls, value: str) -> str:
        if value:
            _check_url(value)
            if not value.startswith("https:") and not is_loopback(value):
                raise ValueError("must be https: the client's secret goes there")
        return value

    @model_validator(mode="after")
    def _times_fit(self) -> KafkaSettings:
        if self.heartbeat_seconds * 3 > self.session_timeout_seconds:
            raise ValueError("KAFKA__HEARTBEAT_SECONDS must be at most a third of KAFKA__SESSION_TIMEOUT_SECONDS")
        topics = [self.events_topic, self.reply_topic, self.dead_letter_topic, self.ledger_topic]
        if len(set(topics)) < len(topics):
            raise ValueError(
                "KAFKA__EVENTS_TOPIC, KAFKA__REPLY_TOPIC, KAFKA__DEAD_LETTER_TOPIC and KAFKA__LEDGER_TOPIC must differ"
            )
        if self.ledger_accept_gap is not None and self.ledger_accept_gap > datetime.now(UTC) + ACCEPT_GAP_AT_MOST:
            raise ValueError("KAFKA__LEDGER_ACCEPT_GAP must be at most a day ahead: it is for one gap, not for all")
        return self

    @model_validator(mode="after")
    def _credentials_fit(self) -> KafkaSettings:
        by_password = self.sasl_username or self.sasl_password.get_secret_value()
        by_client = self.sasl_oauth_token_url or self.sasl_oauth_client_id
        if not self.uses_sasl:
            if by_password or by_client or self.sasl_oauth_token_file is not None:
                raise ValueError(
                    f"KAFKA__SECURITY_PROTOCOL is {self.security_protocol}, which uses no KAFKA__SASL_* credentials: "
                    "SASL_SSL was meant, or they are to be removed"
                )
        elif self.sasl_mechanism != "OAUTHBEARER":
            if not (self.sasl_username and self.sasl_password.get_secret_value()):
                raise ValueError(
                    "KAFKA__SECURITY_PROTOCOL with SASL needs KAFKA__SASL_USERNAME and KAFKA__SASL_PASSWORD"
                )
        elif (self.sasl_oauth_token_file is not None) == bool(by_client):
            raise ValueError(
                "KAFKA__SASL_MECHANISM OAUTHBEARER needs either KAFKA__SASL_OAUTH_TOKEN_FILE or "
                "KAFKA__SASL_OAUTH_TOKEN_URL with client id and secret"
            )
        elif by_client and not (
            self.sasl_oauth_token_url and self.sasl_oauth_client_id and self.sasl_oauth_client_secret.get_secret_value()
        ):
            raise ValueError(
                "KAFKA__SASL_OAUTH_TOKEN_URL, KAFKA__SASL_OAUTH_CLIENT_ID and KAFKA__SASL_OAUTH_CLIENT_SECRET "
                "go together"
            )
        return self

    @model_validator(mode="after")
    def _certificates_fit(self) -> KafkaSettings:
        if (self.ssl_cert_file is None) != (self.ssl_key_file is None):
            raise ValueError("KAFKA__SSL_CERT_FILE and KAFKA__SSL_KEY_FILE go together")
        if not self.uses_tls and (self.ssl_ca_file is not None or self.ssl_cert_file is not None):
            raise ValueError(
                f"KAFKA__SECURITY_PROTOCOL is {self.security_protocol}, which encrypts nothing and uses no "
                "KAFKA__SSL_* files: SSL or SASL_SSL was meant, or they are to be removed"
            )
        self.ssl_context()
        if self.sasl_oauth_ca_file is not None:
            trust(self.sasl_oauth_ca_file, "KAFKA__SASL_OAUTH_CA_FILE")
        return self

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol in {"SSL", "SASL_SSL"}

    @property
    def uses_sasl(self) -> bool:
        """Whether a connection begins with credentials."""
        return self.security_protocol.startswith("SASL_")

    def ssl_context(self) -> ssl.SSLContext | None:
        """What brokers' certificates are checked by, names included, and what we show them; no TLS: none.

        Raises:
            ValueError: a file cannot be used; the message names the setting.
        """
        if not self.uses_tls:
            return None
        context = trust(self.ssl_ca_file, "KAFKA__SSL_CA_FILE")
        if self.ssl_cert_file is not None and self.ssl_key_file is not None:
            for file, name in ((self.ssl_cert_file, "CERT"), (self.ssl_key_file, "KEY")):
                read_small(file, f"KAFKA__SSL_{name}_FILE")
            password = self.ssl_key_password.get_secret_value()
            try:
                # A function: without any password OpenSSL would ask for one at the terminal.
                context.load_cert_chain(self.ssl_cert_file, self.ssl_key_file, password=lambda: password)
            except ssl.SSLError as error:
                if error.reason == "KEY_VALUES_MISMATCH":
                    raise ValueError("KAFKA__SSL_KEY_FILE is not the key of KAFKA__SSL_CERT_FILE") from None
                if b"ENCRYPTED" in self.ssl_key_file.read_bytes():
                    what = "does not open" if password else "is missing: it is needed for"
                    raise ValueError(f"KAFKA__SSL_KEY_PASSWORD {what} KAFKA__SSL_KEY_FILE") from None
                raise ValueError(
                    "KAFKA__SSL_CERT_FILE and KAFKA__SSL_KEY_FILE are no certificate and key in PEM form"
                ) from None
        return context


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
    proxy: str = Field("", repr=False, description="HTTP proxy for the API, http://[user:password@]host:port.")
    extra_headers: dict[str, SecretStr] = Field(
        default_factory=dict, description="Sent with each request; a JSON object. Values are not shown."
    )

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        _check_url(value)
        return value.rstrip("/")

    @field_validator("proxy")
    @classmethod
    def _is_proxy(cls, value: str) -> str:
        if value:
            _check_url(value, user=True)
            if urlsplit(value).path.strip("/"):
                raise ValueError("must be http://host:port, without a path")
        return value

    @field_serializer("proxy")
    def _without_password(self, value: str) -> str:
        user, at, host = value.rpartition("@")
        return f"{user.partition('://')[0]}://{MASK}@{host}" if at else value

    @field_validator("extra_headers")
    @classmethod
    def _can_be_headers(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, content in value.items():
            if name.lower() in SENT_BY_US:
                raise ValueError(f"{name} is not to be set here; the key belongs in API__KEY")
            text = content.get_secret_value()
            if not HEADER_NAME.fullmatch(name) or not (text.isascii() and text.isprintable()):
                raise ValueError(f"{name!a} or its value holds a character that no header may carry")
        return value

    @model_validator(mode="after")
    def _one_key(self) -> ApiSettings:
        if self.key.get_secret_value() and self.key_file is not None:
            raise ValueError("API__KEY and API__KEY_FILE exclude each other")
        if self.key_file is not None:
            self.key = SecretStr(read_key(self.key_file))
        host = urlsplit(self.base_url).hostname or ""
        if not self.key.get_secret_value() and (host == "aliyuncs.com" or host.endswith(".aliyuncs.com")):
            self.key = SecretStr(os.environ.get("DASHSCOPE_API_KEY", ""))
        _check_key(self.key.get_secret_value())
        if self.ca_file is not None:
            self.ssl_context()
        return self

    def ssl_context(self) -> ssl.SSLContext:
        """What the API's certificate is checked by.

        Raises:
            ValueError: ``CA_FILE`` cannot be used.
        """
        return trust(self.ca_file, "API__CA_FILE")


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
        None, gt=0, le=1_000_000, description="Fixed limit; none: what the API bears is found out."
    )
    max_attempts: int = Field(
        8, ge=1, le=1000, description="Failures, while others get through, before one conversation is given up."
    )
    max_age_seconds: float = Field(
        900,
        gt=0,
        le=604_800,
        description="How long they must have gone on, besides; what the circuit was open does not count.",
    )
    backoff_initial_seconds: float = Field(0.5, gt=0, le=60, description="First back-off, before jitter.")
    backoff_max_seconds: float = Field(60, gt=0, le=3600, description="Longest back-off.")
    settle_seconds: float | None = Field(
        None, gt=0, le=86_400, description="When a request unheard of cannot land any more; none: API total + 7."
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
    max_buffered_bytes: int = Field(128 << 20, ge=1 << 20, le=1 << 40, description="Their bytes.")
    max_uncommitted_events: int = Field(
        500_000, ge=100, le=100_000_000, description="Events above the oldest one without outcome, over all partitions."
    )
    max_known_conversations: int = Field(
        100_000, ge=0, le=100_000_000, description="Conversations whose newest item id is remembered."
    )
    max_record_bytes: int = Field(
        16 << 20,
        ge=1024,
        le=1 << 30,
        description="Bytes of a record, key and headers included; a larger one is a dead letter.",
    )


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
        None, ge=1, le=1_000_000, description="Most dead letters with no delivery between; above, consumption stops."
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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - its signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes before the ``.env`` file, and that before mounted secrets."""
        mounted = NestedSecretsSettingsSource(
            file_secret_settings, secrets_dir_missing="error", secrets_dir_max_size=MAX_SECRET_BYTES
        )
        return init_settings, env_settings, dotenv_settings, mounted

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
    try:
        given = {**dotenv_values(ENV_FILE), **os.environ}
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"{ENV_FILE}: cannot be read, or is no text (CONVOY_ variables go before it)") from None
    _check_names(given)
    _check_traces(os.environ)
    folder = given.get(SECRETS_DIR) or None
    try:
        secrets = _secret_files(folder)
        _check_names(dict.fromkeys(secrets, ""), "the folder of CONVOY_SECRETS_DIR holds ")
        settings = Settings(_secrets_dir=folder)
    except ValidationError as error:
        raise SettingsError("; ".join(_line(detail) for detail in error.errors(include_url=False))) from None
    except (SourceError, OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{SECRETS_DIR}: {error}") from None
    key = f"{PREFIX}API{DELIMITER}KEY"
    if not any(name.upper() == key for name in given) and key in (names := {name.upper(): name for name in secrets}):
        # Looked at again and again, like any key file, so that the key can be changed while the service runs.
        settings.api.key_file = Path(folder or "") / names[key]
    if need_key and not settings.api.key.get_secret_value():
        raise SettingsError("CONVOY_API__KEY: no key (set it, or CONVOY_API__KEY_FILE)")
    return settings


def unsafe(settings: Settings) -> list[str]:
    """What is allowed and not safe, a line each that names the setting."""
    kafka, api = settings.kafka, settings.api
    found = []
    if kafka.security_protocol == "SASL_PLAINTEXT":
        what = {"PLAIN": "the password and ", "OAUTHBEARER": "the token and "}.get(kafka.sasl_mechanism, "")
        found.append(
            f"CONVOY_KAFKA__SECURITY_PROTOCOL=SASL_PLAINTEXT: {what}messages can be read on the way; use SASL_SSL"
        )
    elif kafka.security_protocol == "PLAINTEXT" and not all(
        is_loopback(f"//{server}") for server in kafka.bootstrap_servers.split(",")
    ):
        found.append(
            "CONVOY_KAFKA__SECURITY_PROTOCOL=PLAINTEXT: messages can be read on the way and nobody is asked who he is"
        )
    if api.base_url.startswith("http:") and not is_loopback(api.base_url):
        found.append("CONVOY_API__BASE_URL without https: key and messages can be read on the way")
    if kafka.ledger_accept_gap is not None:
        found.append("CONVOY_KAFKA__LEDGER_ACCEPT_GAP is set: what was being sent may be stored twice; take it back")
    return found


def read_key(file: Path) -> str:
    """The API key that a file holds.

    Raises:
        ValueError: it cannot be read, or holds what is no key; the message names the setting, not the content.
    """
    try:
        text = read_small(file, "API__KEY_FILE").decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("API__KEY_FILE is no text") from None
    if not text:
        raise ValueError("API__KEY_FILE holds no key")
    _check_key(text)
    return text


def read_small(file: Path, name: str) -> bytes:
    """The content of a file of the setting ``name``.

    Raises:
        ValueError: it cannot be read, or is far too large; the message names the setting.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None
    if len(content) > MAX_SECRET_BYTES:
        raise ValueError(f"{name} is larger than {MAX_SECRET_BYTES} bytes")
    return content


def trust(ca_file: Path | None, name: str) -> ssl.SSLContext:
    """A context that checks certificates and the names in them, by a file's authorities or the system's.

    Raises:
        ValueError: the file, that of the setting ``name``, cannot be used.
    """
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except ssl.SSLError:
        raise ValueError(f"{name} holds no certificates in PEM form") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def traces_wanted(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's own variables ask for traces; its default, to export always, is none for a service.

    An exporter or an endpoint has to be named, and the SDK not disabled.
    """

    def given(name: str) -> str:
        return environment.get(name, "").strip().lower()

    if given("OTEL_SDK_DISABLED") == "true":
        return False
    if exporter := given("OTEL_TRACES_EXPORTER"):
        return exporter != "none"
    return bool(given("OTEL_EXPORTER_OTLP_ENDPOINT") or given("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


def _check_traces(environment: Mapping[str, str]) -> None:
    if not traces_wanted(environment):
        return
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    if exporter not in {"otlp", "console"}:
        raise SettingsError(f"OTEL_TRACES_EXPORTER: otlp, console or none, not {exporter}")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if protocol := environment.get(name, "").strip().lower():
            if protocol != "http/protobuf":
                raise SettingsError(f"{name}: only http/protobuf is spoken, not {protocol}")
            break
    if not all(_is_installed(name) for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")):
        raise SettingsError("OTEL_* variables ask for traces, which need more: pip install 'convoy[otel]'")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


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


def _check_url(value: str, *, user: bool = False) -> None:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError("must be an http(s) URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or port == 0:
        raise ValueError("must be an http(s) URL without query")
    if not user and "@" in parts.netloc:
        raise ValueError("must hold no user or password: it is shown")
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ValueError("must be an http(s) URL, and percent-encode what is not ASCII")


def _check_key(key: str) -> None:
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError("API__KEY holds a character that no header may carry")


def _secret_files(folder: str | None) -> list[str]:
    return [] if folder is None else [entry.name for entry in Path(folder).iterdir() if entry.is_file()]


def _check_names(environment: Mapping[str, str | None], where: str = "") -> None:
    known = variables()
    for given in sorted(environment):
        name = given.upper()
        if not name.startswith(PREFIX) or NOT_SETTINGS.match(name) or name == SECRETS_DIR:
            continue
        if name in known:
            if get_origin(known[name].annotation) is dict and not where:
                _check_object(given, environment[given] or "")
            continue
        if SERVICE_LINK.match(name) and DELIMITER not in name:
            continue
        members = [setting for setting in known if setting.startswith(name + DELIMITER)]
        if members:
            raise SettingsError(f"{given}: is a group; set its members, such as {members[0]}")
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise SettingsError(f"{where}{given}: there is no such setting{hint}")


def _check_object(name: str, text: str) -> None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
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
