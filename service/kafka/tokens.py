"""Tokens for SASL OAUTHBEARER: from a file that something else renews, or from a token endpoint.

Decides when a token is asked for anew; which broker takes it is none of its business. A token stands in no log
and no error.

Sources: RFC 6749 §4.4 (client credentials) and §2.3.1 (how a client names itself), RFC 7628 (OAUTHBEARER).
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus, urlencode, urlsplit

import msgspec
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaError

from service.settings import MAX_SECRET_BYTES, read_small, trust

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from service.settings import KafkaSettings

ASK_SECONDS = 10.0
RENEW_AT = 0.8
"""Of a token's life: later, a slow endpoint could let it run out."""
UNKNOWN_LIFE_SECONDS = 60.0
"""Where the endpoint does not say."""
LONGEST_LIFE_SECONDS = 86_400.0


class TokenError(KafkaError):  # type: ignore[misc]
    """No token is to be had; the message says why and holds no secret. aiokafka tries again where it retries."""


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """What aiokafka asks for a token at each connection."""

    def __init__(self, extensions: Mapping[str, str]) -> None:
        self._extensions = dict(extensions)

    async def token(self) -> str:
        """A token that is good now.

        Raises:
            TokenError: there is none.
        """
        return await asyncio.to_thread(self.read)

    def extensions(self) -> dict[str, str]:
        """What is sent beside the token."""
        return self._extensions

    def read(self) -> str:
        """The same as `token`, for the thread it is asked in."""
        raise NotImplementedError


class FileTokens(TokenProvider):
    """Reads the file each time: whoever renews it replaces it."""

    def __init__(self, file: Path, extensions: Mapping[str, str]) -> None:
        super().__init__(extensions)
        self._file = file

    def read(self) -> str:
        """The file's content."""
        try:
            token = read_small(self._file, "KAFKA__SASL_OAUTH_TOKEN_FILE").decode("ascii").strip()
        except UnicodeDecodeError:
            raise TokenError("KAFKA__SASL_OAUTH_TOKEN_FILE holds no token") from None
        except ValueError as error:
            raise TokenError(str(error)) from None
        _check(token, "KAFKA__SASL_OAUTH_TOKEN_FILE")
        expired = time.time() - (expiry(token) or time.time())
        if expired > 0:
            raise TokenError(f"the token in KAFKA__SASL_OAUTH_TOKEN_FILE expired {expired:.0f} s ago")
        return token


class EndpointTokens(TokenProvider):
    """Asks a token endpoint as a client of its own right, and keeps the token for most of its life."""

    def __init__(
        self, url: str, client_id: str, secret: str, scope: str, ca_file: Path | None, extensions: Mapping[str, str]
    ) -> None:
        super().__init__(extensions)
        self._host = urlsplit(url).hostname
        form = {"grant_type": "client_credentials"} | ({"scope": scope} if scope else {})
        credentials = base64.b64encode(f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()).decode()
        self._request = urllib.request.Request(  # noqa: S310 - the settings admit https, and http on this machine
            url,
            urlencode(form).encode(),
            {"Authorization": f"Basic {credentials}", "Accept": "application/json", "User-Agent": "convoy"},
        )
        # No proxy of the environment, and no redirect: the secret goes where the setting says and nowhere else.
        self._open = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=trust(ca_file, "KAFKA__SASL_OAUTH_CA_FILE")),
            _NoRedirect,
        ).open
        self._asking = threading.Lock()
        self._token = ""
        self._renew_at = 0.0
        self._good_until = 0.0

    def read(self) -> str:
        """The token kept, or a new one; while the endpoint fails, the old one as long as it is good."""
        with self._asking:
            now = time.monotonic()
            if now < self._renew_at:
                return self._token
            try:
                answer = self._ask()
                _check(answer.access_token, f"the answer of the token endpoint {self._host}")
            except TokenError:
                if now < self._good_until:
                    return self._token
                raise
            seconds = min(answer.expires_in, LONGEST_LIFE_SECONDS) if answer.expires_in > 0 else UNKNOWN_LIFE_SECONDS
            self._token = answer.access_token
            self._renew_at, self._good_until = now + seconds * RENEW_AT, now + seconds
            return self._token

    def _ask(self) -> _Answer:
        where = f"the token endpoint {self._host}"
        try:
            with self._open(self._request, timeout=ASK_SECONDS) as answer:
                body = answer.read(MAX_SECRET_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                code = _member(error.read(MAX_SECRET_BYTES), "error")
            raise TokenError(f"{where} answers {error.code}{f' ({code})' if code else ''}") from None
        except (OSError, ValueError) as error:
            # URLError, time-outs and TLS failures are OSErrors; a broken status line is a ValueError.
            reason = getattr(error, "reason", error)
            raise TokenError(f"{where} cannot be asked: {reason}") from None
        try:
            # Not strict: some endpoints write the seconds as a text.
            return msgspec.json.decode(body, type=_Answer, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise TokenError(f"{where} answers with what is no token") from None


class _Answer(msgspec.Struct):
    """RFC 6749 §5.1."""

    access_token: str
    expires_in: float = UNKNOWN_LIFE_SECONDS


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def provider(settings: KafkaSettings) -> TokenProvider:
    """The provider of these settings: one a process, so that all connections share its token."""
    extensions = tuple(sorted(settings.sasl_oauth_extensions.items()))
    if settings.sasl_oauth_token_file is not None:
        return FileTokens(settings.sasl_oauth_token_file, dict(extensions))
    return _endpoint(
        settings.sasl_oauth_token_url,
        settings.sasl_oauth_client_id,
        settings.sasl_oauth_client_secret.get_secret_value(),
        settings.sasl_oauth_scope,
        settings.sasl_oauth_ca_file,
        extensions,
    )


@functools.cache
def _endpoint(
    url: str, client_id: str, secret: str, scope: str, ca_file: Path | None, extensions: tuple[tuple[str, str], ...]
) -> EndpointTokens:
    return EndpointTokens(url, client_id, secret, scope, ca_file, dict(extensions))


def expiry(token: str) -> float | None:
    """When a token runs out (Unix time), where it is a JWT that says so; it is not verified, brokers do that."""
    try:
        body = token.split(".")[1]
        moment = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["exp"]
        return float(moment)
    except (IndexError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None


def _check(token: str, where: str) -> None:
    # A control character would end the token's field (RFC 7628 §3.1).
    if not token or not (token.isascii() and token.isprintable()):
        raise TokenError(f"{where} holds no token")


def _member(body: bytes, name: str) -> str:
    """A short word from the JSON of an error."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    word = value.get(name) if isinstance(value, dict) else None
    return word[:100] if isinstance(word, str) and word.isprintable() else ""
