"""Whatever stands in the environment, reading it ends in settings or in one line that says what is wrong."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from switches import SOAK

from service.commands.config import show
from service.commands.settings_schema import settings_schema
from service.settings import Settings, SettingsError, load, unsafe, variables

MANY = 60_000 if SOAK else 1_500
HUSH = "hush-sk-4711-"
"""Every secret given holds it, so that it can be looked for."""
SECRET = sorted(
    setting["x-variable"]
    for group in settings_schema()["properties"].values()
    for setting in group["properties"].values()
    if setting.get("x-secret") and setting["type"] == "string"
)
PLAIN = sorted(set(variables()) - set(SECRET))

# What the system lets into an environment: no zero, and no half of a surrogate pair but for bytes that are no UTF-8.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
NASTY = st.sampled_from(
    [
        "", " ", "0", "-0", "-1", "1e999", "nan", "inf", "-inf", "NaN", "1_000", "0x10", "1e3", "9" * 400, "9" * 5000,
        "true", "off", "None", "null", "{}", "[]", '{"a": 1}', '{"a": "b"}', "[" * 5000, '{"a":' * 2000, '"', "'",
        "a,b", ",", "localhost:9092", "a:1,b:2", "[::1]:9092", "https://h.example/v1", "http://", "https://[", "\u00fc",
        "http://a:b@h.example", "h://x", "/", ".", "..", "/dev/null", "/etc/passwd", "/proc/self/mem", "~", "a" * 5000,
        "SASL_SSL", "SSL", "SASL_PLAINTEXT", "PLAINTEXT", "OAUTHBEARER", "SCRAM-SHA-512", "\udcff\udcfe", "a\nb", "\r",
        "2026-01-01T00:00:00Z", "2026-13-45", "${HOME}", "%s", "{0}",
    ]
)  # fmt: skip
VALUE = NASTY | TEXT | st.integers().map(str) | st.floats().map(str)
UNKNOWN = st.text(st.sampled_from("ABKPI_S"), max_size=12).map(lambda tail: f"CONVOY_{tail}")
GIVEN = st.dictionaries(st.sampled_from(PLAIN), VALUE, max_size=8)
SECRETS = st.dictionaries(st.sampled_from(SECRET), TEXT.map(lambda text: HUSH + text), max_size=3)
STRAY = st.dictionaries(UNKNOWN, VALUE, max_size=1)


def read(environment: dict[str, str]) -> Settings | None:
    """Settings, or `None` where they were refused as they must be."""
    with mock.patch.dict(os.environ, environment, clear=True):
        try:
            found = load(need_key=False)
        except SettingsError as error:
            line = str(error)
            assert line.startswith("CONVOY_") or "CONVOY_" in line[:120], line
            assert len(line.splitlines()) == 1, line
            assert HUSH not in line
            return None
    return found


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck))
@example({"CONVOY_KAFKA__SSL_CA_FILE": "/proc/self/mem", "CONVOY_KAFKA__SECURITY_PROTOCOL": "SSL"}, {}, {})
@example({"CONVOY_API__EXTRA_HEADERS": "[" * 100_000}, {}, {})
@example({"CONVOY_API__CA_FILE": "\udcff"}, {}, {})
@given(GIVEN, SECRETS, STRAY)
def test_no_environment_gets_more_out_of_it_than_one_line(
    plain: dict[str, str], secret: dict[str, str], stray: dict[str, str]
) -> None:
    found = read(stray | plain | secret)
    if found is not None:
        for text in (show(found, as_json=False), show(found, as_json=True), repr(found), *unsafe(found)):
            assert HUSH not in text


@settings(max_examples=MANY // 2, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200) | st.text().map(str.encode), st.dictionaries(st.sampled_from(PLAIN + SECRET), VALUE))
def test_no_file_of_settings_does_either(noise: bytes, lines: dict[str, Any]) -> None:
    text = noise + b"\n" + b"\n".join(f"{name}={value}".encode(errors="replace") for name, value in lines.items())
    Path(".env").write_bytes(text)
    read({})


@settings(max_examples=MANY // 2, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(SECRET + PLAIN) | UNKNOWN, st.binary(max_size=100) | st.just(b"x" * 70_000)))
def test_nor_does_a_folder_of_secrets(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        read({"CONVOY_SECRETS_DIR": folder})
