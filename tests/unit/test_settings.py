"""What may be set, what may not, and that each refusal is one line that names the setting."""

from __future__ import annotations

import math
import os
import ssl
from pathlib import Path
from typing import Any, Protocol, get_args

import annotated_types
import pytest
from certificates import Authority, write

from service.commands.config import show
from service.settings import DEFAULT_BASE_URL, Settings, SettingsError, load, unsafe, variables

KEY = "sk-0815"
SASL = {"KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "KAFKA__SASL_USERNAME": "me", "KAFKA__SASL_PASSWORD": "hush"}
BEARER = {"KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "KAFKA__SASL_MECHANISM": "OAUTHBEARER"}


class Given(Protocol):
    def __call__(self, **settings: str) -> Settings: ...


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith(("CONVOY_", "DASHSCOPE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """`given(BATCH__MAX_ITEMS="3")` → the settings of that environment, with a key unless it names one."""

    def read(**settings: str) -> Settings:
        for name, value in ({"API__KEY": KEY} | settings).items():
            monkeypatch.setenv(f"CONVOY_{name}", value)
        return load()

    return read


def refused(given: Given, **settings: str) -> str:
    """The line that refuses these settings; it is one."""
    with pytest.raises(SettingsError) as error:
        given(**settings)
    line = str(error.value)
    assert "\n" not in line
    return line


# Defaults


def test_a_key_is_all_that_must_be_given(given: Given) -> None:
    settings = given()
    assert settings.api.base_url == DEFAULT_BASE_URL
    assert settings.api.key.get_secret_value() == KEY
    assert (settings.batch.max_items, settings.batch.window_seconds, settings.batch.max_bytes) == (20, 1, 1 << 20)
    assert (settings.limits.max_buffered_events, settings.limits.max_buffered_bytes) == (50_000, 128 << 20)
    assert (settings.kafka.group_id, settings.kafka.events_topic) == ("convoy", "conversation.events")
    assert settings.kafka.reply_topic == "conversation.replies"
    assert settings.kafka.dead_letter_topic == "conversation.dead-letters"
    assert (settings.ops.host, settings.ops.port, settings.ops.ready_needs_api) == ("0.0.0.0", 8080, False)


def test_what_is_given_is_read_and_the_rest_of_its_group_keeps_its_default(given: Given) -> None:
    settings = given(
        BATCH__MAX_ITEMS="7", KAFKA__BOOTSTRAP_SERVERS="a:1,b:2", LOG__FORMAT="CONSOLE", LOG__LEVEL="Debug"
    )
    assert (settings.batch.max_items, settings.batch.window_seconds) == (7, 1)
    assert settings.kafka.bootstrap_servers == "a:1,b:2"
    assert (settings.log.format, settings.log.level) == ("console", "debug")


def test_names_are_read_in_any_case(monkeypatch: pytest.MonkeyPatch, given: Given) -> None:
    monkeypatch.setenv("convoy_batch__max_items", "9")
    assert given().batch.max_items == 9


def test_a_file_in_the_working_folder_is_read_and_the_environment_goes_before_it(tmp_path: Path, given: Given) -> None:
    (tmp_path / ".env").write_text("CONVOY_BATCH__MAX_ITEMS=3\nCONVOY_BATCH__WINDOW_SECONDS=9\nOTHER=thing\n")
    settings = given(BATCH__MAX_ITEMS="4")
    assert (settings.batch.max_items, settings.batch.window_seconds) == (4, 9)


# Bounds


def just_outside(bound: Any, *, whole: bool) -> list[float]:
    step = 1 if whole else 0.001
    match bound:
        case annotated_types.Ge(ge):
            return [float(str(ge)) - step]
        case annotated_types.Gt(gt):
            return [float(str(gt))]
        case annotated_types.Le(le):
            return [float(str(le)) + step]
        case annotated_types.Lt(lt):
            return [float(str(lt))]
        case _:
            return []


OUTSIDE = [
    (name.removeprefix("CONVOY_"), int(value) if field.annotation is int else value)
    for name, field in variables().items()
    for bound in field.metadata
    for value in just_outside(bound, whole=field.annotation is int)
]
NUMBERS = [name.removeprefix("CONVOY_") for name, field in variables().items() if field.annotation in {int, float}]


@pytest.mark.parametrize(("name", "value"), OUTSIDE)
def test_a_value_beyond_its_bound_is_refused_in_a_line_that_names_it(given: Given, name: str, value: float) -> None:
    assert refused(given, **{name: str(value)}).startswith(f"CONVOY_{name}: Input should be ")


def test_every_number_has_a_bound_below_and_above() -> None:
    for name, field in variables().items():
        if {int, float} & {field.annotation, *get_args(field.annotation)}:
            kinds = {type(bound) for bound in field.metadata}
            assert kinds & {annotated_types.Ge, annotated_types.Gt}, name
            assert kinds & {annotated_types.Le, annotated_types.Lt}, name


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["nan", "-inf", "inf", "1e999", "", "many", "1,5"])
def test_what_is_no_number_is_refused(given: Given, name: str, value: str) -> None:
    assert refused(given, **{name: value}).startswith(f"CONVOY_{name}: ")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"BATCH__WINDOW_SECONDS": "-1"}, "CONVOY_BATCH__WINDOW_SECONDS: Input should be greater than or equal to 0"),
        ({"BATCH__MAX_ITEMS": "21"}, "CONVOY_BATCH__MAX_ITEMS: Input should be less than or equal to 20"),
        ({"BATCH__MAX_ITEMS": "0"}, "CONVOY_BATCH__MAX_ITEMS: Input should be greater than or equal to 1"),
        ({"OPS__PORT": "65536"}, "CONVOY_OPS__PORT: Input should be less than or equal to 65535"),
        ({"LOG__FORMAT": "xml"}, "CONVOY_LOG__FORMAT: Input should be 'json' or 'console'"),
        ({"KAFKA__EVENTS_TOPIC": ""}, "CONVOY_KAFKA__EVENTS_TOPIC: String should have at least 1 character"),
        ({"OPS__READY_NEEDS_API": "perhaps"}, "CONVOY_OPS__READY_NEEDS_API: Input should be a valid boolean"),
    ],
)
def test_a_refusal_says_what_would_be_right(given: Given, settings: dict[str, str], line: str) -> None:
    assert refused(given, **settings).startswith(line)


def test_several_mistakes_are_told_at_once(given: Given) -> None:
    line = refused(given, BATCH__MAX_ITEMS="21", BATCH__WINDOW_SECONDS="-1", OPS__PORT="x")
    for name in ("BATCH__MAX_ITEMS", "BATCH__WINDOW_SECONDS", "OPS__PORT"):
        assert f"CONVOY_{name}: " in line


# Contradictions


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"API__TOTAL_TIMEOUT_SECONDS": "40"},
            "SHUTDOWN__DRAIN_SECONDS (40) must exceed API__TOTAL_TIMEOUT_SECONDS (40)",
        ),
        (
            {"SHUTDOWN__DRAIN_SECONDS": "60"},
            "KAFKA__REBALANCE_TIMEOUT_SECONDS (60) must exceed SHUTDOWN__DRAIN_SECONDS",
        ),
        ({"API__CONNECT_TIMEOUT_SECONDS": "21"}, "API__CONNECT_TIMEOUT_SECONDS must be at most API__TOTAL_TIMEOUT"),
        ({"KAFKA__HEARTBEAT_SECONDS": "16"}, "KAFKA__HEARTBEAT_SECONDS must be at most a third of KAFKA__SESSION"),
        ({"KAFKA__SESSION_TIMEOUT_SECONDS": "8"}, "KAFKA__HEARTBEAT_SECONDS must be at most a third of KAFKA__SESSION"),
        ({"KAFKA__REPLY_TOPIC": "conversation.events"}, "KAFKA__EVENTS_TOPIC, KAFKA__REPLY_TOPIC"),
        ({"KAFKA__DEAD_LETTER_TOPIC": "conversation.replies"}, "KAFKA__EVENTS_TOPIC, KAFKA__REPLY_TOPIC"),
        (
            {"DELIVERY__BACKOFF_INITIAL_SECONDS": "60", "DELIVERY__BACKOFF_MAX_SECONDS": "59"},
            "DELIVERY__BACKOFF_INITIAL",
        ),
        ({"LIMITS__MAX_BUFFERED_EVENTS": "500001"}, "LIMITS__MAX_UNCOMMITTED_EVENTS must be at least LIMITS__MAX_BUFF"),
        ({"KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}, "KAFKA__SECURITY_PROTOCOL with SASL needs KAFKA__SASL_USERNAME"),
        ({"KAFKA__LEDGER_ACCEPT_GAP": "2999-01-01T00:00:00Z"}, "KAFKA__LEDGER_ACCEPT_GAP must be at most a day ahead"),
        ({"KAFKA__LEDGER_ACCEPT_GAP": "2020-01-01T00:00:00"}, "KAFKA__LEDGER_ACCEPT_GAP: "),
        ({"KAFKA__LEDGER_ACCEPT_GAP": "true"}, "KAFKA__LEDGER_ACCEPT_GAP: "),
        ({"KAFKA__SSL_CERT_FILE": "/tmp/c"}, "KAFKA__SSL_CERT_FILE and KAFKA__SSL_KEY_FILE go together"),
        ({"KAFKA__SSL_CA_FILE": "/tmp/c"}, "KAFKA__SECURITY_PROTOCOL is PLAINTEXT, which encrypts nothing"),
        (SASL | {"KAFKA__SECURITY_PROTOCOL": "PLAINTEXT"}, "KAFKA__SECURITY_PROTOCOL is PLAINTEXT, which uses no"),
        (SASL | {"KAFKA__SECURITY_PROTOCOL": "SSL"}, "KAFKA__SECURITY_PROTOCOL is SSL, which uses no KAFKA__SASL_*"),
        (BEARER, "KAFKA__SASL_MECHANISM OAUTHBEARER needs either KAFKA__SASL_OAUTH_TOKEN_FILE or"),
        (
            BEARER | {"KAFKA__SASL_OAUTH_TOKEN_FILE": "/t", "KAFKA__SASL_OAUTH_TOKEN_URL": "https://i.example/t"},
            "KAFKA__SASL_MECHANISM OAUTHBEARER needs either",
        ),
        (
            BEARER | {"KAFKA__SASL_OAUTH_TOKEN_URL": "https://i.example/t", "KAFKA__SASL_OAUTH_CLIENT_ID": "me"},
            "KAFKA__SASL_OAUTH_TOKEN_URL, KAFKA__SASL_OAUTH_CLIENT_ID and KAFKA__SASL_OAUTH_CLIENT_SECRET go together",
        ),
        (BEARER | {"KAFKA__SASL_OAUTH_TOKEN_URL": "http://i.example/t"}, "KAFKA__SASL_OAUTH_TOKEN_URL: must be https"),
        ({"KAFKA__SECURITY_PROTOCOL": "SSL", "KAFKA__SSL_CA_FILE": "/nowhere"}, "KAFKA__SSL_CA_FILE cannot be read"),
        ({"API__CA_FILE": "/nowhere"}, "API__CA_FILE cannot be read"),
        ({"API__CA_FILE": __file__}, "API__CA_FILE holds no certificates in PEM form"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(
    given: Given, settings: dict[str, str], words: str
) -> None:
    line = refused(given, **settings)
    assert line.startswith("CONVOY_")
    assert words in line


def test_a_start_above_the_greatest_concurrency_is_the_greatest(given: Given) -> None:
    assert given(DELIVERY__MAX_CONCURRENCY="4").delivery.start_concurrency == 4


def test_an_attempt_settles_seven_seconds_after_its_time_out_unless_said_otherwise(given: Given) -> None:
    assert given(API__TOTAL_TIMEOUT_SECONDS="11").settle_seconds == 18
    assert given(DELIVERY__SETTLE_SECONDS="3").settle_seconds == 3


# Names


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("BATCH__WINDOW_SECOND", "CONVOY_BATCH__WINDOW_SECONDS"),
        ("BATCH__MAX_ITEM", "CONVOY_BATCH__MAX_ITEMS"),
        ("BATCH_MAX_ITEMS", "CONVOY_BATCH__MAX_ITEMS"),
        ("KAFKA__BOOTSTRAP_SERVER", "CONVOY_KAFKA__BOOTSTRAP_SERVERS"),
        ("API_KEY", "CONVOY_API__KEY"),
        ("KAFKA__SASL_PASSWORT", "CONVOY_KAFKA__SASL_PASSWORD"),
    ],
)
def test_an_unknown_name_is_refused_with_the_one_that_was_meant(given: Given, name: str, suggestion: str) -> None:
    line = refused(given, **{name: "hush"})
    assert line == f"CONVOY_{name}: there is no such setting; did you mean {suggestion}?"


@pytest.mark.parametrize("name", ["TURBO", "X__Y", "_", "BATCH__", "BATCH__MAX_ITEMS__MORE"])
def test_an_unknown_name_like_no_other_is_refused_too(given: Given, name: str) -> None:
    assert refused(given, **{name: "1"}).startswith(f"CONVOY_{name}: there is no such setting")


def test_an_unknown_name_in_the_file_is_refused_as_well(tmp_path: Path, given: Given) -> None:
    (tmp_path / ".env").write_text("CONVOY_BATHC__MAX_ITEMS=3\n")
    assert refused(given).startswith("CONVOY_BATHC__MAX_ITEMS: there is no such setting; did you mean")


def test_a_group_as_a_whole_is_refused_with_one_of_its_members(given: Given) -> None:
    assert (
        refused(given, BATCH='{"max_items": 3}')
        == "CONVOY_BATCH: is a group; set its members, such as CONVOY_BATCH__MAX_ITEMS"
    )


@pytest.mark.parametrize(
    "name",
    [
        "CONVOY_PORT",
        "CONVOY_PORT_8080_TCP",
        "CONVOY_PORT_8080_TCP_ADDR",
        "CONVOY_SERVICE_HOST",
        "CONVOY_SERVICE_PORT",
        "CONVOY_SERVICE_PORT_HTTP",
        "CONVOY_METRICS_PORT_8080_TCP_PROTO",
        "CONVOY_METRICS_SERVICE_HOST",
    ],
)
def test_the_links_that_kubernetes_sets_for_a_service_of_this_name_are_no_settings(
    monkeypatch: pytest.MonkeyPatch, given: Given, name: str
) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:8080")
    given()


def test_variables_of_others_are_none_of_ours(monkeypatch: pytest.MonkeyPatch, given: Given) -> None:
    monkeypatch.setenv("CONVOYS", "1")
    monkeypatch.setenv("MY_CONVOY_BATCH__MAX_ITEMS", "100")
    monkeypatch.setenv("BATCH__MAX_ITEMS", "100")
    monkeypatch.setenv("CONVOY_TEST_KAFKA", "localhost:9092")
    assert given().batch.max_items == 20


def test_an_object_is_read_and_what_is_none_is_refused(given: Given) -> None:
    settings = given(API__EXTRA_HEADERS='{"X-Team": "chat"}', DELIVERY__VERDICTS='{"Teapot": "busy"}')
    assert {name: value.get_secret_value() for name, value in settings.api.extra_headers.items()} == {"X-Team": "chat"}
    assert settings.delivery.verdicts == {"teapot": "busy"}
    assert refused(given, API__EXTRA_HEADERS="X-Team: chat").startswith(
        "CONVOY_API__EXTRA_HEADERS: must be a JSON object"
    )
    assert "CONVOY_API__EXTRA_HEADERS" in refused(given, API__EXTRA_HEADERS="[1]")


def test_a_verdict_nobody_knows_is_refused(given: Given) -> None:
    assert "CONVOY_DELIVERY__VERDICTS" in refused(given, DELIVERY__VERDICTS='{"teapot": "shrug"}')


# The key


def test_without_a_key_a_start_is_refused_and_a_command_is_not(given: Given) -> None:
    assert refused(given, API__KEY="") == "CONVOY_API__KEY: no key (set it, or CONVOY_API__KEY_FILE)"
    assert load(need_key=False).api.key.get_secret_value() == ""


@pytest.mark.parametrize(
    "host",
    [
        "dashscope.aliyuncs.com",
        "dashscope-intl.aliyuncs.com",
        "aliyuncs.com",
        "DashScope.AliyunCS.com",
        "a.b.aliyuncs.com",
    ],
)
def test_alibabas_own_variable_serves_its_own_hosts(monkeypatch: pytest.MonkeyPatch, given: Given, host: str) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-alibaba")
    assert given(API__KEY="", API__BASE_URL=f"https://{host}/v1").api.key.get_secret_value() == "sk-alibaba"


@pytest.mark.parametrize(
    "host",
    [
        "api.openai.com",
        "aliyuncs.com.evil.example",
        "evilaliyuncs.com",
        "aliyuncs.com@evil.example",
        "dashscope.aliyuncs.com:443@evil.example",
        "evil.example/aliyuncs.com",
        "localhost:8090",
        "xn--aliyuncs-1za.com",
        "aliyuncs.co",
    ],
)
def test_alibabas_own_variable_serves_no_other_host(monkeypatch: pytest.MonkeyPatch, given: Given, host: str) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-alibaba")
    assert refused(given, API__KEY="", API__BASE_URL=f"https://{host}/v1").startswith("CONVOY_API__")


def test_a_key_of_ones_own_goes_before_alibabas_variable(monkeypatch: pytest.MonkeyPatch, given: Given) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-alibaba")
    assert given().api.key.get_secret_value() == KEY


def test_a_key_is_read_from_a_file_without_the_line_break_at_its_end(tmp_path: Path, given: Given) -> None:
    file = tmp_path / "key"
    file.write_text("sk-from-a-file\n")
    settings = given(API__KEY="", API__KEY_FILE=str(file))
    assert settings.api.key.get_secret_value() == "sk-from-a-file"


def test_a_key_and_a_key_file_exclude_each_other(tmp_path: Path, given: Given) -> None:
    file = tmp_path / "key"
    file.write_text("sk-from-a-file\n")
    assert refused(given, API__KEY_FILE=str(file)).startswith("CONVOY_API__KEY and API__KEY_FILE exclude each other")


@pytest.mark.parametrize("content", [None, "", " \n", b"\xff\xfe"])
def test_a_key_file_that_holds_no_key_is_refused(tmp_path: Path, given: Given, content: str | bytes | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refused(given, API__KEY="", API__KEY_FILE=str(file)).startswith("CONVOY_API__KEY")


@pytest.mark.parametrize("key", ["sk-\u00fc", "sk-1\nX-Evil: 1", "sk 1", "sk-\x7f", "sk-1\r"])
def test_a_key_that_no_header_may_carry_is_refused_and_not_shown(given: Given, key: str) -> None:
    line = refused(given, API__KEY=key)
    assert line.startswith("CONVOY_API__KEY holds a character")
    assert key not in line


# The address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.example.com/v1",
        "ftp://api.example.com",
        "https://",
        "https://h/v1?key=1",
        "https://h/v1#x",
        "http:///v1",
    ],
)
def test_an_address_that_is_none_is_refused(given: Given, url: str) -> None:
    assert refused(given, API__BASE_URL=url).startswith("CONVOY_API__BASE_URL: ")


def test_slashes_at_the_end_of_an_address_do_not_count(given: Given) -> None:
    assert given(API__BASE_URL="https://h.example/v1//").api.base_url == "https://h.example/v1"


def test_the_key_is_not_taken_from_a_header_that_would_be_shown(given: Given) -> None:
    line = refused(given, API__EXTRA_HEADERS='{"authorization": "Bearer sk-9"}')
    assert line.startswith("CONVOY_API__")
    assert "sk-9" not in line


@pytest.mark.parametrize(
    "servers",
    ["", "kafka", "kafka:", ":9092", "kafka:0", "kafka:65536", "kafka:http", "a:1,", "a:1,,b:2", "a:1 b:2", "k:٤"],
)
def test_brokers_that_are_no_addresses_are_refused(given: Given, servers: str) -> None:
    assert refused(given, KAFKA__BOOTSTRAP_SERVERS=servers).startswith("CONVOY_KAFKA__BOOTSTRAP_SERVERS: ")


def test_brokers_may_be_many_and_of_any_kind(given: Given) -> None:
    kafka = given(KAFKA__BOOTSTRAP_SERVERS="a:1, [::1]:2,10.0.0.1:65535").kafka
    assert kafka.bootstrap_servers == "a:1,[::1]:2,10.0.0.1:65535"


@pytest.mark.parametrize(
    "url", ["http://user:hush@h.example/v1", "https://h.example:0/v1", "https://h.example/ü", "https://[::1/v1"]
)
def test_an_address_that_would_show_or_confuse_is_refused_and_not_repeated(given: Given, url: str) -> None:
    line = refused(given, API__BASE_URL=url)
    assert line.startswith("CONVOY_API__BASE_URL: must ")
    assert "hush" not in line


# What is not safe

TLS_SWITCHES = [
    "API__VERIFY", "API__TLS_VERIFY", "API__SSL_VERIFY", "API__INSECURE", "API__CA", "API__SKIP_VERIFY", "API__CAFILE",
    "KAFKA__SSL_VERIFY", "KAFKA__SSL_CHECK_HOSTNAME", "KAFKA__SSL_INSECURE",
    "KAFKA__SSL_ENDPOINT_IDENTIFICATION_ALGORITHM",
]  # fmt: skip


@pytest.mark.parametrize("name", TLS_SWITCHES)
@pytest.mark.parametrize("value", ["false", "0", ""])
def test_no_variable_switches_the_checking_of_certificates_off(given: Given, name: str, value: str) -> None:
    assert "there is no such setting" in refused(given, **{name: value})


@pytest.mark.parametrize(
    "name", ["PYTHONHTTPSVERIFY", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_TLS_REJECT_UNAUTHORIZED"]
)
def test_nor_does_a_variable_of_others(monkeypatch: pytest.MonkeyPatch, given: Given, name: str) -> None:
    monkeypatch.setenv(name, "0")
    settings = given(KAFKA__SECURITY_PROTOCOL="SSL")
    for context in (settings.api.ssl_context(), settings.kafka.ssl_context()):
        assert context is not None
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"KAFKA__BOOTSTRAP_SERVERS": "kafka:9092"}, "CONVOY_KAFKA__SECURITY_PROTOCOL=PLAINTEXT: messages can be read"),
        (
            SASL | {"KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT"},
            "SASL_PLAINTEXT: the password and messages can be read",
        ),
        ({"API__BASE_URL": "http://gateway/v1"}, "CONVOY_API__BASE_URL without https: key and messages can be read"),
        ({"KAFKA__LEDGER_ACCEPT_GAP": "2026-01-01T00:00:00Z"}, "CONVOY_KAFKA__LEDGER_ACCEPT_GAP is set"),
    ],
)
def test_what_is_allowed_and_not_safe_is_named(given: Given, settings: dict[str, str], words: str) -> None:
    (line,) = unsafe(given(**settings))
    assert words in line


def test_what_stays_on_this_machine_or_is_encrypted_is_safe(given: Given) -> None:
    assert unsafe(given(API__BASE_URL="http://127.0.0.1:8090/v1")) == []
    assert unsafe(given(KAFKA__BOOTSTRAP_SERVERS="kafka:9093", **SASL)) == []


# Mounted secrets


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder as Kubernetes mounts a Secret: files are links into a folder that is replaced as a whole."""
    folder = tmp_path / "secrets"
    (folder / "..2026").mkdir(parents=True)
    (folder / "..data").symlink_to("..2026")
    monkeypatch.setenv("CONVOY_SECRETS_DIR", str(folder))
    return folder


def mount(folder: Path, name: str, content: str) -> None:
    (folder / "..2026" / name).write_text(content)
    (folder / name).symlink_to(Path("..data") / name)


def test_secrets_are_read_from_files_named_like_variables(
    monkeypatch: pytest.MonkeyPatch, mounted: Path, given: Given
) -> None:
    mount(mounted, "CONVOY_API__KEY", "sk-mounted\n")
    mount(mounted, "convoy_kafka__sasl_password", "hush-mounted\n")
    mount(mounted, "tls.crt", "somebody else's")
    (mounted / "..2026" / "CONVOY_NOT__SEEN").write_text("1")
    for name, value in SASL.items():
        if name != "KAFKA__SASL_PASSWORD":
            monkeypatch.setenv(f"CONVOY_{name}", value)
    settings = load()
    assert settings.api.key.get_secret_value() == "sk-mounted"
    assert settings.api.key_file == mounted / "CONVOY_API__KEY", "to be read again when it changes"
    assert settings.kafka.sasl_password.get_secret_value() == "hush-mounted"


def test_a_variable_goes_before_a_mounted_secret(mounted: Path, given: Given) -> None:
    mount(mounted, "CONVOY_API__KEY", "sk-mounted")
    settings = given()
    assert settings.api.key.get_secret_value() == KEY
    assert settings.api.key_file is None


def test_a_mounted_secret_that_is_no_setting_is_refused(mounted: Path, given: Given) -> None:
    mount(mounted, "CONVOY_API__KEYS", "sk-mounted")
    line = refused(given)
    assert "CONVOY_API__KEYS: there is no such setting; did you mean CONVOY_API__KEY?" in line
    assert "sk-mounted" not in line


@pytest.mark.parametrize("folder", ["/nowhere", __file__])
def test_a_folder_of_secrets_that_is_none_is_refused(given: Given, folder: str) -> None:
    assert refused(given, SECRETS_DIR=folder).startswith("CONVOY_SECRETS_DIR: ")


# Certificates and keys


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    own = Authority().issue("convoy")
    return {
        "KAFKA__SECURITY_PROTOCOL": "SSL",
        "KAFKA__SSL_CERT_FILE": write(tmp_path, "convoy.pem", own.pem()),
        "KAFKA__SSL_KEY_FILE": write(tmp_path, "convoy.key", own.key_pem("sesame")),
        "KAFKA__SSL_KEY_PASSWORD": "sesame",
    }


def test_an_encrypted_key_is_opened_by_its_password(given: Given, pair: dict[str, str]) -> None:
    context = given(**pair).kafka.ssl_context()
    assert context is not None
    assert context.check_hostname


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"KAFKA__SSL_KEY_PASSWORD": "sesam"}, "KAFKA__SSL_KEY_PASSWORD does not open KAFKA__SSL_KEY_FILE"),
        ({"KAFKA__SSL_KEY_PASSWORD": ""}, "KAFKA__SSL_KEY_PASSWORD is missing: it is needed for KAFKA__SSL_KEY_FILE"),
        ({"KAFKA__SSL_CERT_FILE": "/nowhere"}, "KAFKA__SSL_CERT_FILE cannot be read: No such file"),
        ({"KAFKA__SSL_KEY_FILE": "/nowhere"}, "KAFKA__SSL_KEY_FILE cannot be read: No such file"),
        ({"KAFKA__SSL_KEY_FILE": __file__}, "KAFKA__SSL_CERT_FILE and KAFKA__SSL_KEY_FILE are no certificate and key"),
    ],
)
def test_a_certificate_or_key_that_cannot_be_used_is_refused_at_the_start(
    given: Given, pair: dict[str, str], change: dict[str, str], words: str
) -> None:
    line = refused(given, **pair | change)
    assert line.startswith(f"CONVOY_{words}")
    assert "sesam" not in line


def test_the_key_of_another_certificate_is_refused(given: Given, pair: dict[str, str], tmp_path: Path) -> None:
    other = write(tmp_path, "other.key", Authority().issue("other").key_pem())
    line = refused(given, **pair | {"KAFKA__SSL_KEY_FILE": other})
    assert line == "CONVOY_KAFKA__SSL_KEY_FILE is not the key of KAFKA__SSL_CERT_FILE"


# Secrets


def test_secrets_are_shown_nowhere(given: Given) -> None:
    settings = given(KAFKA__SECURITY_PROTOCOL="SASL_SSL", KAFKA__SASL_USERNAME="me", KAFKA__SASL_PASSWORD="hush-hush")
    for shown in (repr(settings), str(settings), show(settings, as_json=True), show(settings, as_json=False)):
        assert KEY not in shown
        assert "hush-hush" not in shown


def test_headers_and_the_password_of_a_proxy_are_not_shown(given: Given) -> None:
    settings = given(API__EXTRA_HEADERS='{"X-Gateway-Key": "hush-1"}', API__PROXY="http://me:hush-2@proxy.example:3128")
    for shown in (repr(settings), str(settings), show(settings, as_json=True), show(settings, as_json=False)):
        assert "hush" not in shown
    assert "CONVOY_API__PROXY=http://**********@proxy.example:3128" in show(settings, as_json=False)


@pytest.mark.parametrize(
    "headers",
    [
        '{"Authorization": "x"}',
        '{"host": "x"}',
        '{"A B": "x"}',
        '{"A": "x\\ny"}',
        '{"": "x"}',
        '{"A": "\u00fc"}',
        '{"A:": "x"}',
    ],
)
def test_headers_that_cannot_be_or_are_ours_to_set_are_refused(given: Given, headers: str) -> None:
    assert refused(given, API__EXTRA_HEADERS=headers).startswith("CONVOY_API__EXTRA_HEADERS: ")


@pytest.mark.parametrize("name", ["API__KEY", "KAFKA__SASL_PASSWORD", "KAFKA__SSL_KEY_PASSWORD"])
def test_a_refusal_elsewhere_does_not_show_a_secret(given: Given, name: str) -> None:
    assert "sesame" not in refused(given, **{name: "sesame", "BATCH__MAX_ITEMS": "x"})


def test_what_config_shows_can_be_read_back(given: Given, tmp_path: Path) -> None:
    before = given(
        BATCH__WINDOW_SECONDS="2.5", DELIVERY__VERDICTS='{"a": "busy"}', API__BASE_URL="http://localhost:1/v1"
    )
    lines = [line for line in show(before, as_json=False).splitlines() if "**" not in line and not line.endswith("=")]
    (tmp_path / ".env").write_text("\n".join(lines))
    os.environ.pop("CONVOY_BATCH__WINDOW_SECONDS")
    os.environ.pop("CONVOY_DELIVERY__VERDICTS")
    os.environ.pop("CONVOY_API__BASE_URL")
    after = given()
    assert after == before
    assert math.isclose(after.batch.window_seconds, 2.5)
