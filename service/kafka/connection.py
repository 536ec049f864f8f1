"""How Kafka is reached: the arguments every aiokafka client takes, made from the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError

from service.kafka.mends import mend
from service.kafka.tokens import provider

if TYPE_CHECKING:
    from service.settings import KafkaSettings

__all__ = ["KafkaError", "connection_arguments", "security_arguments"]

mend()


def connection_arguments(settings: KafkaSettings) -> dict[str, Any]:
    """The arguments of aiokafka's consumer, producer and admin client that name and secure the brokers."""
    return {"bootstrap_servers": settings.bootstrap_servers, **security_arguments(settings)}


def security_arguments(settings: KafkaSettings) -> dict[str, Any]:
    """Those that secure a connection, of whichever broker."""
    arguments: dict[str, Any] = {"security_protocol": settings.security_protocol}
    context = settings.ssl_context()
    if context is not None:
        arguments["ssl_context"] = context
    if settings.uses_sasl:
        arguments["sasl_mechanism"] = settings.sasl_mechanism
        if settings.sasl_mechanism == "OAUTHBEARER":
            arguments["sasl_oauth_token_provider"] = provider(settings)
        else:
            arguments["sasl_plain_username"] = settings.sasl_username
            arguments["sasl_plain_password"] = settings.sasl_password.get_secret_value()
    return arguments
