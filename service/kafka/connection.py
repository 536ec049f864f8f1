"""How Kafka is reached: the arguments every aiokafka client takes, made from the settings."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

from service.kafka.mends import mend

if TYPE_CHECKING:
    from service.settings import KafkaSettings

__all__ = ["KafkaError", "broker_security", "connection_arguments"]

mend()


def connection_arguments(settings: KafkaSettings) -> dict[str, Any]:
    """The arguments of aiokafka's consumer, producer and admin client that name and secure the brokers."""
    arguments: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "security_protocol": settings.security_protocol,
    }
    context = _ssl_context(settings)
    if context is not None:
        arguments["ssl_context"] = context
    if settings.security_protocol.startswith("SASL"):
        arguments["sasl_mechanism"] = settings.sasl_mechanism
        arguments["sasl_plain_username"] = settings.sasl_username
        arguments["sasl_plain_password"] = settings.sasl_password.get_secret_value()
    return arguments


def broker_security(settings: KafkaSettings) -> BaseSecurity:
    """The same for FastStream's broker, which takes an object of its own."""
    context = _ssl_context(settings)
    use_ssl = context is not None
    if not settings.security_protocol.startswith("SASL"):
        return BaseSecurity(ssl_context=context, use_ssl=use_ssl)
    make = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}
    return make[settings.sasl_mechanism](
        username=settings.sasl_username,
        password=settings.sasl_password.get_secret_value(),
        ssl_context=context,
        use_ssl=use_ssl,
    )


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    if settings.security_protocol not in {"SSL", "SASL_SSL"}:
        return None
    context = ssl.create_default_context(cafile=str(settings.ssl_ca_file) if settings.ssl_ca_file else None)
    if settings.ssl_cert_file is not None:
        password = settings.ssl_key_password.get_secret_value()
        context.load_cert_chain(str(settings.ssl_cert_file), str(settings.ssl_key_file), password=password or None)
    return context
