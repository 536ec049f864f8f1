"""A real Kafka that trusts nobody: TLS, every SASL mechanism, and rights only where they were granted.

Its listeners, all on 127.0.0.1: `admin` (PLAINTEXT, may do everything: the tests' own hands), `sasl` (SASL_SSL),
`mutual` (SSL, client certificate required) and `clear` (SASL_PLAINTEXT). By hand: `python tests/secure_kafka.py`.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from certificates import Authority, TokenSigner, write
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)
from kafka_server import PROPERTIES, JvmKafka, find_java, free_port, kafka_jars

if TYPE_CHECKING:
    from pathlib import Path

USER = "convoy"
PASSWORD = "hush-of-the-tests-0815"
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
LOGIN = "org.apache.kafka.common.security"
PATIENCE_SECONDS = 15.0
TOKEN_CONNECTION_SECONDS = 3


class SecureKafka(JvmKafka):
    """One broker, KRaft, with the authorizer that Kafka brings."""

    def __init__(self) -> None:
        super().__init__(find_java(), kafka_jars(), heap_megabytes=384)
        self.authority = Authority()
        self.signer = TokenSigner("https://issuer.example", "kafka")
        self.ports = {name: free_port() for name in ("sasl", "mutual", "clear")}
        self._admin: AdminClient | None = None

    def address(self, listener: str) -> str:
        return f"localhost:{self.ports[listener]}"

    def _properties(self, folder: Path) -> dict[str, str]:
        server = self.authority.issue("the broker", ["localhost"])
        keystore = write(folder, "server.pem", server.key_pem() + server.pem() + self.authority.pem())
        truststore = write(folder, "ca.pem", self.authority.pem())
        keys = write(folder, "jwks.json", self.signer.jwks().encode())
        self._java_options = (f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls=file://{keys}",)
        own = {"ADMIN": self._port, "CONTROLLER": self._controller_port}
        others = {"SASL": self.ports["sasl"], "MUTUAL": self.ports["mutual"], "CLEAR": self.ports["clear"]}
        properties = PROPERTIES | {
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in (own | others).items()),
            "advertised.listeners": ",".join(
                [f"ADMIN://127.0.0.1:{self._port}", *(f"{name}://localhost:{port}" for name, port in others.items())]
            ),
            "listener.security.protocol.map": (
                "ADMIN:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_SSL,MUTUAL:SSL,CLEAR:SASL_PLAINTEXT"
            ),
            "inter.broker.listener.name": "ADMIN",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "log.dirs": str(folder / "data"),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": keystore,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": truststore,
            "listener.name.mutual.ssl.client.auth": "required",
            "ssl.principal.mapping.rules": "RULE:^CN=(.*?)$/$1/,DEFAULT",
            # The default one checks no signature here. Kafka does not look for it under a listener's name.
            "sasl.oauthbearer.jwt.validator.class": f"{LOGIN}.oauthbearer.BrokerJwtValidator",
            # A refused client is told at once: the default waits, to slow guessing down.
            "connection.failed.authentication.delay.ms": "10",
        }
        for listener in ("sasl", "clear"):
            prefix = f"listener.name.{listener}"
            properties[f"{prefix}.sasl.enabled.mechanisms"] = ",".join(MECHANISMS)
            jaas = {
                "plain": f'{LOGIN}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
                "scram-sha-256": f"{LOGIN}.scram.ScramLoginModule required;",
                "scram-sha-512": f"{LOGIN}.scram.ScramLoginModule required;",
                "oauthbearer": f"{LOGIN}.oauthbearer.OAuthBearerLoginModule required;",
            }
            properties |= {f"{prefix}.{name}.sasl.jaas.config": text for name, text in jaas.items()}
            # A connection that came with a token lives as long as that, and here not long.
            properties[f"{prefix}.oauthbearer.connections.max.reauth.ms"] = str(TOKEN_CONNECTION_SECONDS * 1000)
            bearer = f"{prefix}.oauthbearer.sasl"
            properties |= {
                f"{bearer}.server.callback.handler.class": f"{LOGIN}.oauthbearer.OAuthBearerValidatorCallbackHandler",
                f"{bearer}.oauthbearer.jwks.endpoint.url": f"file://{keys}",
                f"{bearer}.oauthbearer.expected.issuer": self.signer.issuer,
                f"{bearer}.oauthbearer.expected.audience": self.signer.audience,
            }
        return properties

    # The tests' own hands

    @property
    def admin(self) -> AdminClient:
        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        return self._admin

    def set_scram(self, user: str, password: str | None) -> None:
        """Give a user these credentials for both SCRAM mechanisms; `None` takes them away."""
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            change = (
                UserScramCredentialDeletion(user, mechanism)
                if password is None
                else UserScramCredentialUpsertion(user, ScramCredentialInfo(mechanism, 4096), password.encode())
            )
            for done in self.admin.alter_user_scram_credentials([change]).values():
                done.result(PATIENCE_SECONDS)

    def grant(self, user: str, *rights: tuple[str, str, str]) -> None:
        """Grant rights, each `(kind, name, operation)` such as `("topic", "events", "READ")`."""
        for done in self.admin.create_acls([_binding(user, *right) for right in rights]).values():
            done.result(PATIENCE_SECONDS)

    def withdraw(self, user: str, *rights: tuple[str, str, str]) -> None:
        """Take rights back; without any, all there are."""
        filters = [_filter(user, *right) for right in rights] or [_filter(user)]
        for done in self.admin.delete_acls(filters).values():
            done.result(PATIENCE_SECONDS)

    def granted(self, user: str) -> int:
        """How many rights the broker knows of."""
        return len(self.admin.describe_acls(_filter(user)).result(PATIENCE_SECONDS))


def _binding(user: str, kind: str, name: str, operation: str) -> AclBinding:
    return AclBinding(
        ResourceType[kind.upper()], name, ResourcePatternType.LITERAL, f"User:{user}", "*",
        AclOperation[operation], AclPermissionType.ALLOW,
    )  # fmt: skip


def _filter(user: str, kind: str = "any", name: str | None = None, operation: str = "ANY") -> AclBindingFilter:
    # A name or host that is None stands for all, which the package's types do not know.
    return AclBindingFilter(
        ResourceType[kind.upper()], name, ResourcePatternType.ANY, f"User:{user}", None,  # type: ignore[arg-type]
        AclOperation[operation], AclPermissionType.ANY,
    )  # fmt: skip


def main() -> None:
    with SecureKafka() as kafka:
        kafka.set_scram(USER, PASSWORD)
        (kafka.folder / "token").write_text(kafka.signer.token(USER, seconds=86_400))
        for line in (
            f"admin {kafka.bootstrap_servers}",
            *(f"{name} localhost:{port}" for name, port in kafka.ports.items()),
        ):
            sys.stdout.write(line + "\n")
        sys.stdout.write(f"folder {kafka.folder}\n")
        sys.stdout.flush()
        while kafka.running():
            time.sleep(0.5)


if __name__ == "__main__":
    main()
