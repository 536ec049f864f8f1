"""Tokens for brokers: where they come from, how long they are kept, and what is said when there is none."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from certificates import TokenSigner
from token_endpoint import TokenEndpoint

from service.kafka import tokens
from service.kafka.tokens import EndpointTokens, FileTokens, TokenError, expiry, provider
from service.settings import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(tokens, "time", made)
    return made


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    numbers = itertools.count(1)
    with TokenEndpoint(lambda: f"token-{next(numbers)}") as made:
        yield made


def asking(endpoint: TokenEndpoint, *, scope: str = "") -> EndpointTokens:
    return EndpointTokens(endpoint.url, endpoint.client, endpoint.secret, scope, None, {})


def test_a_token_is_kept_for_most_of_its_life_and_then_asked_for_anew(endpoint: TokenEndpoint, clock: Clock) -> None:
    source = asking(endpoint)
    endpoint.expires_in = 100
    assert source.read() == source.read() == "token-1"
    clock.now += 79
    assert source.read() == "token-1"
    clock.now += 2
    assert source.read() == "token-2"


def test_while_the_endpoint_fails_the_old_token_serves_as_long_as_it_is_good(
    endpoint: TokenEndpoint, clock: Clock
) -> None:
    source = asking(endpoint)
    endpoint.expires_in = 100
    source.read()
    endpoint.status = 503
    clock.now += 90
    assert source.read() == "token-1"
    clock.now += 11
    with pytest.raises(TokenError, match="answers 503"):
        source.read()
    endpoint.status = 200
    assert source.read() == "token-2"


@pytest.mark.parametrize(("life", "kept_seconds"), [("100", 79), (0, 47), (-5, 47), (1e12, 60_000)])
def test_a_life_of_any_form_is_understood(
    endpoint: TokenEndpoint, clock: Clock, life: object, kept_seconds: float
) -> None:
    source = asking(endpoint)
    endpoint.expires_in = life
    assert source.read() == "token-1"
    clock.now += kept_seconds
    assert source.read() == "token-1"
    clock.now += 40_000
    assert source.read() == "token-2"


def test_many_connections_at_once_ask_once(endpoint: TokenEndpoint) -> None:
    source = asking(endpoint, scope="kafka all")
    with ThreadPoolExecutor(max_workers=8) as pool:
        assert set(pool.map(lambda _: source.read(), range(40))) == {"token-1"}
    assert endpoint.asked == [{"grant_type": ["client_credentials"], "scope": ["kafka all"]}]


def test_a_client_and_secret_with_any_characters_arrive_as_they_are(endpoint: TokenEndpoint) -> None:
    endpoint.client, endpoint.secret = "me:and you", "p%ss=w\u00f6rd+/"
    assert asking(endpoint).read() == "token-1"


def test_a_secret_that_is_refused_is_told_and_not_shown(endpoint: TokenEndpoint) -> None:
    source = EndpointTokens(endpoint.url, endpoint.client, "wrong-hush", "", None, {})
    with pytest.raises(TokenError, match=r"the token endpoint 127\.0\.0\.1 answers 401 \(invalid_client\)") as error:
        source.read()
    assert "hush" not in str(error.value)


def test_the_secret_follows_no_redirect(endpoint: TokenEndpoint) -> None:
    with TokenEndpoint(lambda: "of-a-thief") as thief:
        endpoint.status, endpoint.location = 302, thief.url
        with pytest.raises(TokenError, match="answers 302"):
            asking(endpoint).read()
        assert thief.asked == []


def test_the_secret_goes_through_no_proxy_of_the_environment(
    endpoint: TokenEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TokenEndpoint(lambda: "of-a-proxy") as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/token"))
        assert asking(endpoint).read() == "token-1"
        assert proxy.asked == []


@pytest.mark.parametrize("token", ["", "with a\x01control", "\u00fc"])
def test_what_is_no_token_is_not_sent(endpoint: TokenEndpoint, token: str) -> None:
    endpoint.token = lambda: token
    with pytest.raises(TokenError, match="holds no token"):
        asking(endpoint).read()


def test_an_endpoint_that_is_not_there_is_told(endpoint: TokenEndpoint) -> None:
    source = EndpointTokens("http://127.0.0.1:1/token", "me", "hush", "", None, {})
    with pytest.raises(TokenError, match="cannot be asked") as error:
        source.read()
    assert "hush" not in str(error.value)


async def test_a_token_file_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    source = FileTokens(file, {})
    with pytest.raises(TokenError, match="KAFKA__SASL_OAUTH_TOKEN_FILE cannot be read: No such file"):
        await source.token()
    file.write_text("one\n")
    assert await source.token() == "one"
    file.write_text("two\n")
    assert await source.token() == "two"


def test_a_token_that_says_it_is_over_is_not_sent(tmp_path: Path) -> None:
    signer = TokenSigner("https://issuer.example", "kafka")
    file = tmp_path / "token"
    file.write_text(signer.token("me", seconds=-30))
    with pytest.raises(TokenError, match=r"expired 3\d s ago"):
        FileTokens(file, {}).read()
    good = signer.token("me")
    file.write_text(good)
    assert FileTokens(file, {}).read() == good


@pytest.mark.parametrize(
    "token", ["", "x", "a.b.c", "a.e30.c", "a.W10.c", "a.eyJleHAiOiAieCJ9.c", "..", "a." + "e" * 9999]
)
def test_a_token_that_says_nothing_of_its_end_is_taken_as_it_is(token: str) -> None:
    assert expiry(token) is None


@pytest.mark.parametrize("size", [64 << 10, 10 << 20])
def test_a_file_that_is_far_too_large_is_not_read_whole(tmp_path: Path, size: int) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"t" * (size + 1))
    with pytest.raises(TokenError, match="is larger than"):
        FileTokens(file, {}).read()


def test_one_process_has_one_source_whoever_asks() -> None:
    given: dict[str, Any] = {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "OAUTHBEARER",
        "sasl_oauth_token_url": "https://issuer.example/token",
        "sasl_oauth_client_id": "me",
        "sasl_oauth_client_secret": "hush",
        "sasl_oauth_extensions": {"logicalCluster": "lkc-1"},
    }
    source = provider(KafkaSettings(**given))
    assert source is provider(KafkaSettings(**given))
    assert source.extensions() == {"logicalCluster": "lkc-1"}
