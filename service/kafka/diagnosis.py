"""Why a broker cannot be spoken to: name, TCP, TLS, SASL, each tried in turn, and the first that fails said in words.

aiokafka tries all of it at once and says only that it could not. Nothing here is sent that a client would not send,
and no certificate is accepted that a client would refuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka.conn import create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from service.kafka.connection import security_arguments
from service.kafka.tokens import TokenError

if TYPE_CHECKING:
    from service.settings import KafkaSettings

STEP_SECONDS = 5.0
ALERT_SECONDS = 0.3
"""With TLS 1.3 a broker that asks for a certificate says so only after the handshake."""
API_VERSIONS = bytes.fromhex("0000000d 0012 0000 00000001 0003 636865")
"""The first question of any client: the key of ApiVersions, version 0, correlation 1, client id ``che``."""
TLS_ALERT = b"\x15\x03"
HOSTNAME_MISMATCH, ADDRESS_MISMATCH = 62, 64
EXPIRED, NOT_YET_VALID = 10, 9
"""OpenSSL's codes, X509_V_ERR_*."""


class Step(enum.StrEnum):
    """What is tried, in this order."""

    DNS = "dns"
    TCP = "tcp"
    TLS = "tls"
    SASL = "sasl"
    PROTOCOL = "protocol"


@dataclass(frozen=True, slots=True)
class Trouble:
    """The step that failed, what happened, and what to do about it."""

    step: Step
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}: {self.advice}"

    @property
    def is_ours(self) -> bool:
        """Whether it is about who we are or whom we trust, so that waiting alone does not mend it."""
        return self.step in {Step.TLS, Step.SASL}


class _StoppedError(Exception):
    def __init__(self, step: Step, what: str, advice: str) -> None:
        super().__init__(what)
        self.trouble = Trouble(step, what, advice)


async def diagnose(settings: KafkaSettings, host: str, port: int) -> Trouble | None:
    """Why this broker cannot be spoken to; ``None`` when it can."""
    try:
        await _resolve(host, port)
        await _connect(host, port)
        if (context := settings.ssl_context()) is not None:
            await _shake_hands(host, port, context, certified=settings.ssl_cert_file is not None)
        await _speak(settings, host, port)
    except _StoppedError as stopped:
        return stopped.trouble
    return None


async def why_unreachable(settings: KafkaSettings) -> Trouble | None:
    """Why none of the brokers named first can be spoken to, by the first of them; ``None`` when one can."""
    first: Trouble | None = None
    for server in settings.bootstrap_servers.split(","):
        host, port = address(server)
        trouble = await diagnose(settings, host, port)
        if trouble is None:
            return None
        first = first or trouble
    return first


def address(server: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[host]:port``."""
    host, _, port = server.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def _resolve(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    try:
        await asyncio.wait_for(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM), STEP_SECONDS)
    except (OSError, UnicodeError):
        raise _StoppedError(Step.DNS, f"nobody knows the name {host}", "check the name, and DNS") from None


async def _connect(host: str, port: int) -> None:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), STEP_SECONDS)
    except TimeoutError:
        raise _StoppedError(
            Step.TCP, f"{host}:{port} does not answer", "check address, firewall and network policies"
        ) from None
    except OSError as error:
        words = "nothing listens there" if isinstance(error, ConnectionRefusedError) else error.strerror or str(error)
        raise _StoppedError(
            Step.TCP, f"{host}:{port} cannot be reached ({words})", "check that the broker is up, and its port"
        ) from None
    await _close(writer)


async def _shake_hands(host: str, port: int, context: ssl.SSLContext, *, certified: bool) -> None:
    writer = None
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(host, port, ssl=context, server_hostname=host), STEP_SECONDS
        )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(1), ALERT_SECONDS)
    except ssl.SSLCertVerificationError as error:
        raise _StoppedError(Step.TLS, *_certificate_words(host, error)) from None
    except ssl.SSLError as error:
        raise _StoppedError(Step.TLS, *_tls_words(f"{host}:{port}", error, certified=certified)) from None
    except (OSError, TimeoutError):
        raise _StoppedError(
            Step.TLS,
            f"{host}:{port} breaks the TLS handshake off",
            "check that this port is a TLS listener, or set KAFKA__SECURITY_PROTOCOL without TLS",
        ) from None
    finally:
        if writer is not None:
            await _close(writer)


def _certificate_words(host: str, error: ssl.SSLCertVerificationError) -> tuple[str, str]:
    match error.verify_code:
        case code if code in {HOSTNAME_MISMATCH, ADDRESS_MISMATCH}:
            return (
                f"the broker's certificate is not for {host}",
                "use a name that stands in the certificate, or have it issued for this one",
            )
        case code if code in {EXPIRED, NOT_YET_VALID}:
            return f"the broker's certificate: {error.verify_message}", "renew it, and look at the clocks"
        case _:
            return (
                f"the broker's certificate is not trusted ({error.verify_message})",
                "name its authority in KAFKA__SSL_CA_FILE",
            )


def _tls_words(place: str, error: ssl.SSLError, *, certified: bool) -> tuple[str, str]:
    reason = (error.reason or "").upper()
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason or (not certified and "HANDSHAKE_FAILURE" in reason):
        if certified:
            return (
                f"{place} refuses our client certificate ({reason.lower()})",
                "check KAFKA__SSL_CERT_FILE: issued by an authority the broker trusts, and not expired",
            )
        return f"{place} asks for a client certificate", "set KAFKA__SSL_CERT_FILE and KAFKA__SSL_KEY_FILE"
    return (
        f"{place} speaks no TLS that fits ({reason.lower() or error})",
        "check that this port is a TLS listener, or set KAFKA__SECURITY_PROTOCOL without TLS",
    )


async def _speak(settings: KafkaSettings, host: str, port: int) -> None:
    place, protocol = f"{host}:{port}", settings.security_protocol
    connection: Any = None
    try:
        connection = await create_conn(
            host, port, client_id="convoy-check", request_timeout_ms=int(STEP_SECONDS * 1000),
            **security_arguments(settings),
        )  # fmt: skip
        # Only the first question that needs a known client shows whether a listener wants SASL.
        await connection.send(MetadataRequest([]))
    except TokenError as error:
        raise _StoppedError(Step.SASL, str(error.args[0]), "renew the token, or check KAFKA__SASL_OAUTH_*") from None
    except SaslAuthenticationFailed:
        raise _StoppedError(Step.SASL, *_refused_words(settings, place)) from None
    except UnsupportedSaslMechanismError:
        raise _StoppedError(
            Step.SASL,
            f"{place} does not take SASL {settings.sasl_mechanism}",
            "set KAFKA__SASL_MECHANISM to one the broker has enabled",
        ) from None
    except IllegalSaslStateError:
        raise _StoppedError(
            Step.SASL,
            f"{place} wants no SASL",
            f"set KAFKA__SECURITY_PROTOCOL={'SSL' if settings.uses_tls else 'PLAINTEXT'}, or use its SASL port",
        ) from None
    except (KafkaError, OSError, TimeoutError, ValueError, IndexError) as error:
        if not settings.uses_tls and await _speaks_tls(host, port):
            wanted = "SASL_SSL" if settings.uses_sasl else "SSL"
            raise _StoppedError(
                Step.TLS, f"{place} speaks TLS, and KAFKA__SECURITY_PROTOCOL is {protocol}", f"set it to {wanted}"
            ) from None
        if connection is not None and not settings.uses_sasl and isinstance(error, KafkaConnectionError):
            wanted = f"SASL_{'SSL' if settings.uses_tls else 'PLAINTEXT'}"
            raise _StoppedError(
                Step.SASL,
                f"{place} hangs up on who does not say who he is",
                f"it probably wants SASL: set KAFKA__SECURITY_PROTOCOL={wanted} and KAFKA__SASL_*",
            ) from None
        raise _StoppedError(
            Step.PROTOCOL, f"{place} does not answer as a Kafka broker does ({_words(error)})", "check the port"
        ) from None
    finally:
        if connection is not None:
            connection.close()


def _refused_words(settings: KafkaSettings, place: str) -> tuple[str, str]:
    if settings.sasl_mechanism == "OAUTHBEARER":
        return (
            f"{place} refuses our token",
            "check that it is not expired, and that issuer, audience and scope are those the broker expects",
        )
    return (
        f"{place} refuses user {settings.sasl_username} (SASL {settings.sasl_mechanism})",
        "check KAFKA__SASL_USERNAME, KAFKA__SASL_PASSWORD and KAFKA__SASL_MECHANISM",
    )


async def _speaks_tls(host: str, port: int) -> bool:
    """Whether a listener answers a question in the clear as TLS does: by an alert."""
    try:
        async with asyncio.timeout(STEP_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(API_VERSIONS)
                return await reader.readexactly(len(TLS_ALERT)) == TLS_ALERT
            finally:
                await _close(writer)
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        await asyncio.wait_for(writer.wait_closed(), STEP_SECONDS)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
