"""Brokers that trust nobody: every way to say who we are, and what happens while we may not do our work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import pytest_asyncio
from certificates import Authority, TokenSigner, write
from conftest import LEDGER_CONFIG, Topics, kafka_is_required
from discretion import overheard
from kafka_server import KafkaUnavailableError, create_topics
from secure_kafka import PASSWORD, USER, SecureKafka
from service_process import API_KEY, Record, ServiceProcess, Trial, chat, until
from token_endpoint import TokenEndpoint

from service.emulator.server import EmulatorServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from pathlib import Path

PARTITIONS = 2
SIDE_BY_SIDE_SECONDS = 60.0
"""Half a dozen processes that start at once on two cores take their time."""
RETRY_SECONDS = 60.0
"""A refused client asks more and more seldom, every quarter of a minute at last."""


@pytest.fixture(scope="module")
def secure() -> Iterator[SecureKafka]:
    try:
        server = SecureKafka()
    except KafkaUnavailableError as missing:
        if kafka_is_required():
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
    with server:
        yield server


@dataclass(slots=True)
class Guarded:
    """A trial whose service is a user with rights of its own, on a listener of the guarded broker."""

    kafka: SecureKafka
    trial: Trial
    user: str
    folder: Path

    @property
    def rights(self) -> list[tuple[str, str, str]]:
        """The exact rights that docs/security.md names."""
        topics = self.trial.topics
        return [
            ("topic", topics.events, "READ"),
            ("topic", topics.replies, "WRITE"),
            ("topic", topics.dead_letters, "WRITE"),
            ("group", topics.group, "READ"),
        ]

    @property
    def ledger_rights(self) -> list[tuple[str, str, str]]:
        return [("topic", self.trial.topics.ledger, "READ"), ("topic", self.trial.topics.ledger, "WRITE")]

    def process(
        self, listener: str = "sasl", *, command: Sequence[str] = ("convoy", "run"), **settings: str
    ) -> ServiceProcess:
        protocol = {"sasl": "SASL_SSL", "mutual": "SSL", "clear": "SASL_PLAINTEXT"}[listener]
        trusted = write(self.folder, "ca.pem", self.kafka.authority.pem())
        given = {"KAFKA__BOOTSTRAP_SERVERS": self.kafka.address(listener), "KAFKA__SECURITY_PROTOCOL": protocol}
        if listener != "clear":
            given["KAFKA__SSL_CA_FILE"] = trusted
        return self.trial.process(command=command, **given | settings)

    def scram(self, **settings: str) -> ServiceProcess:
        return self.process(**by_password("SCRAM-SHA-512", self.user) | settings)

    async def delivers(self, *, first: int = 0) -> int:
        """Publish a few events and wait until they are delivered and committed."""
        count = await self.trial.publish(chat(conversations=5, turns=4, first=first))
        await self.trial.finished()
        return count

    async def judged(self, delivered: int) -> None:
        report = await self.trial.audit()
        assert report.content, report.lines()
        assert (report.delivered, report.duplicated.count) == (delivered, 0)


def by_password(mechanism: str, user: str = USER, password: str = PASSWORD) -> dict[str, str]:
    return {
        "KAFKA__SASL_MECHANISM": mechanism,
        "KAFKA__SASL_USERNAME": user,
        "KAFKA__SASL_PASSWORD": password,
    }


class Guard(Protocol):
    async def __call__(self) -> Guarded: ...


@pytest_asyncio.fixture
async def guard(secure: SecureKafka, tmp_path: Path) -> AsyncIterator[Guard]:
    """`await guard()` → topics, an API and a user of their own; several trials of one test go on side by side."""
    apis: list[EmulatorServer] = []
    async with contextlib.AsyncExitStack() as stack:

        async def make() -> Guarded:
            topics = Topics(PARTITIONS)
            await create_topics(
                secure.bootstrap_servers, dict.fromkeys(topics.names, PARTITIONS), {topics.ledger: LEDGER_CONFIG}
            )
            apis.append(await stack.enter_async_context(EmulatorServer(key=API_KEY, create_on_write=True)))
            user = f"user-{uuid.uuid4().hex[:8]}"
            await asyncio.to_thread(secure.set_scram, user, PASSWORD)
            folder = tmp_path / user
            folder.mkdir()
            return Guarded(secure, Trial(secure.bootstrap_servers, topics, apis[-1], folder), user, folder)

        yield make
    await asyncio.to_thread(secure.withdraw, USER)
    assert overheard(tmp_path, apis) == [], "message text in a log"


def warnings(service: ServiceProcess) -> list[str]:
    """What the service itself complains of, each with its reason; not what libraries say."""
    return [
        f"{line['message']}: {line.get('for') or line.get('error')}"
        for line in service.lines()
        if line["level"] in {"warning", "error", "critical"} and line["logger"].startswith("service")
    ]


async def says(service: ServiceProcess, *words: str, within_seconds: float = RETRY_SECONDS) -> str:
    """Wait until readiness fails with all of these words; returns what it says."""

    async def said() -> str:
        code, status = await service.readiness()
        return status if code == 503 and all(word in status for word in words) else ""

    return await until(f"{words} in readiness", said, within_seconds)


# Who we are

WAYS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "token endpoint", "certificate", "in the clear")
BEARER = {"KAFKA__SASL_MECHANISM": "OAUTHBEARER"}


async def test_the_service_works_with_the_rights_it_needs_and_no_others_whoever_it_is(guard: Guard) -> None:
    await asyncio.gather(*[_works(await guard(), way) for way in WAYS])


async def _works(guarded: Guarded, way: str) -> None:
    with contextlib.ExitStack() as stack:
        user, listener, settings = _way(guarded, way, stack)
        await asyncio.to_thread(guarded.kafka.grant, user, *guarded.rights)
        if way == "SCRAM-SHA-256":
            settings |= {"KAFKA__LEDGER_TOPIC": guarded.trial.topics.ledger}
            await asyncio.to_thread(guarded.kafka.grant, user, *guarded.ledger_rights)
        async with guarded.process(listener, **settings) as service:
            await service.ready(SIDE_BY_SIDE_SECONDS)
            count = await guarded.delivers()
            if way == "token endpoint":
                # Connections made with a token are cut when its time is over, and made anew with a fresh one.
                count += await _through_cuts(guarded)
            assert await service.stop() == 0
    await guarded.judged(count)


def _way(guarded: Guarded, way: str, stack: contextlib.ExitStack) -> tuple[str, str, dict[str, str]]:
    """User, listener and settings."""
    signer, user = guarded.kafka.signer, guarded.user
    if way == "certificate":
        pair = guarded.kafka.authority.issue(user)
        return user, "mutual", {
            "KAFKA__SSL_CERT_FILE": write(guarded.folder, "convoy.pem", pair.pem()),
            "KAFKA__SSL_KEY_FILE": write(guarded.folder, "convoy.key", pair.key_pem("key-hush-of-the-tests")),
            "KAFKA__SSL_KEY_PASSWORD": "key-hush-of-the-tests",
        }  # fmt: skip
    if way == "token endpoint":
        endpoint = stack.enter_context(TokenEndpoint(lambda: signer.token(user, seconds=60)))
        return user, "sasl", BEARER | {
            "KAFKA__SASL_OAUTH_TOKEN_URL": endpoint.url,
            "KAFKA__SASL_OAUTH_CLIENT_ID": endpoint.client,
            "KAFKA__SASL_OAUTH_CLIENT_SECRET": endpoint.secret,
        }  # fmt: skip
    if way == "in the clear":
        return user, "clear", by_password("SCRAM-SHA-256", user)
    if way == "PLAIN":
        # Its users stand in the broker's own settings.
        return USER, "sasl", by_password("PLAIN")
    return user, "sasl", by_password(way, user)


async def _through_cuts(guarded: Guarded) -> int:
    """Publish for longer than a connection lives; returns how many."""
    loop = asyncio.get_running_loop()
    count, first, until_then = 0, 4, loop.time() + 8
    while loop.time() < until_then:
        count += await guarded.trial.publish(chat(conversations=5, turns=2, first=first))
        first += 2
        await asyncio.sleep(0.2)
    await guarded.trial.finished()
    return count


async def _wrong_password(guarded: Guarded) -> None:
    await asyncio.to_thread(guarded.kafka.grant, guarded.user, *guarded.rights)
    await asyncio.to_thread(guarded.kafka.set_scram, guarded.user, "another-password")
    async with guarded.scram() as service:
        said = await says(service, "refuses user", guarded.user, "KAFKA__SASL_PASSWORD")
        await asyncio.to_thread(guarded.kafka.set_scram, guarded.user, PASSWORD)
        await service.ready(RETRY_SECONDS)
        count = await guarded.delivers()
        assert warnings(service) == [f"waiting: {said.removeprefix('waiting for ')}"]
        assert await service.stop() == 0
    await guarded.judged(count)


async def _strangers_token(guarded: Guarded) -> None:
    await asyncio.to_thread(guarded.kafka.grant, guarded.user, *guarded.rights)
    signer = guarded.kafka.signer
    bad = TokenSigner(signer.issuer, signer.audience).token(guarded.user)
    file = guarded.folder / "token"
    file.write_text(bad)
    async with guarded.process(**BEARER, KAFKA__SASL_OAUTH_TOKEN_FILE=str(file)) as service:
        await says(service, "refuses our token")
        file.write_text(signer.token(guarded.user))
        await service.ready(RETRY_SECONDS)
        assert len(warnings(service)) == 1
        assert bad not in service.log()


async def _token_that_ends(guarded: Guarded) -> None:
    """A token that is renewed no more: the connections it made are cut one after the other."""
    await asyncio.to_thread(guarded.kafka.grant, guarded.user, *guarded.rights)
    file = guarded.folder / "token"
    file.write_text(guarded.kafka.signer.token(guarded.user))
    async with guarded.process(**BEARER, KAFKA__SASL_OAUTH_TOKEN_FILE=str(file)) as service:
        await service.ready(SIDE_BY_SIDE_SECONDS)
        count = await guarded.delivers()
        file.write_text(guarded.kafka.signer.token(guarded.user, seconds=-60))
        await says(service, "expired", within_seconds=RETRY_SECONDS)
        count += await guarded.trial.publish(chat(conversations=5, turns=4, first=4))
        file.write_text(guarded.kafka.signer.token(guarded.user))
        await service.ready(RETRY_SECONDS)
        await guarded.trial.finished()
        assert len([line for line in warnings(service) if "do not let us in" in line]) == 1
        assert await service.stop() == 0
    await guarded.judged(count)


# Whom we trust

DISTRUST: Mapping[str, tuple[dict[str, Any], str]] = {
    "an unknown authority": ({"trusted": "another"}, "KAFKA__SSL_CA_FILE"),
    "the system's authorities alone": ({"trusted": ""}, "KAFKA__SSL_CA_FILE"),
    "a name that is not in the certificate": ({"host": "127.0.0.1"}, "certificate is not for 127.0.0.1"),
    "no certificate of ours": ({"listener": "mutual"}, "KAFKA__SSL_CERT_FILE"),
    "a certificate nobody there trusts": ({"listener": "mutual", "issuer": "another"}, "refuses our client cert"),
    "an expired certificate": ({"listener": "mutual", "issuer": "own", "expired": True}, "refuses our client cert"),
}


async def test_without_trust_on_both_sides_nothing_is_said(guard: Guard) -> None:
    await asyncio.gather(*[_distrusted(await guard(), case) for case in DISTRUST])


async def _distrusted(guarded: Guarded, case: str) -> None:
    given, words = DISTRUST[case]
    listener = given.get("listener", "sasl")
    settings = {} if listener == "mutual" else by_password("PLAIN")
    if "trusted" in given:
        another = write(guarded.folder, "another.pem", Authority("another").pem())
        settings["KAFKA__SSL_CA_FILE"] = another if given["trusted"] else ""
    if "host" in given:
        settings["KAFKA__BOOTSTRAP_SERVERS"] = guarded.kafka.address(listener).replace("localhost", given["host"])
    if "issuer" in given:
        authority = guarded.kafka.authority if given["issuer"] == "own" else Authority("another")
        pair = authority.issue(USER, expired=given.get("expired", False))
        settings["KAFKA__SSL_CERT_FILE"] = write(guarded.folder, "convoy.pem", pair.pem())
        settings["KAFKA__SSL_KEY_FILE"] = write(guarded.folder, "convoy.key", pair.key_pem())
    async with guarded.process(listener, **settings) as service:
        await says(service, words)
        assert len(warnings(service)) == 1
        assert await service.metric("assigned_partitions") == 0


# What we may do


async def _missing_rights(guarded: Guarded) -> None:
    """Each is named until it is granted."""
    rights = guarded.rights + guarded.ledger_rights
    async with guarded.scram(KAFKA__LEDGER_TOPIC=guarded.trial.topics.ledger) as service:
        missing = list(rights)
        while missing:
            said = await says(service, *(f"grant {operation} on {kind} {name}" for kind, name, operation in missing))
            granted = set(rights) - set(missing)
            assert not any(f"grant {operation} on {kind} {name}" in said for kind, name, operation in granted)
            await asyncio.to_thread(guarded.kafka.grant, guarded.user, missing.pop())

            async def another(before: str = said) -> bool:
                return (await service.readiness())[1] != before

            await until("readiness to take notice", another)
        await service.ready()
        count = await guarded.delivers()
        assert len(warnings(service)) == len(rights), "one line for each state of things"
        assert await service.stop() == 0
    await guarded.judged(count)


async def _through_withdrawal(guarded: Guarded, kind: str, name: str, operation: str, records: list[Record]) -> None:
    """Take one right away while it works, see it told once and shown, give it back, see it all through."""
    await asyncio.to_thread(guarded.kafka.grant, guarded.user, *guarded.rights)
    async with guarded.scram() as service:
        await service.ready(SIDE_BY_SIDE_SECONDS)
        await guarded.delivers()
        await asyncio.to_thread(guarded.kafka.withdraw, guarded.user, (kind, name, operation))
        await guarded.trial.publish(records)
        await says(service, name)
        before = await guarded.trial.committed()
        await asyncio.to_thread(guarded.kafka.grant, guarded.user, (kind, name, operation))
        await service.ready(RETRY_SECONDS)
        await guarded.trial.finished()
        assert await guarded.trial.committed() != before
        told = [line for line in warnings(service) if name in line]
        assert len(told) == 1, told
        assert await service.stop() == 0


async def test_what_brokers_refuse_is_told_once_shown_and_waited_out_and_nothing_is_lost(guard: Guard) -> None:
    """Credentials not good or no more, rights missing or withdrawn while it works: much waiting, so side by side."""
    more = list(chat(conversations=5, turns=4, first=4))
    bad = [Record(b"conv_000", json.dumps({"no": "event"}).encode())]
    trials = [await guard() for _ in range(4)]
    names = [trial.trial.topics for trial in trials]
    await asyncio.gather(
        _wrong_password(await guard()),
        _strangers_token(await guard()),
        _token_that_ends(await guard()),
        _missing_rights(await guard()),
        _through_withdrawal(trials[0], "topic", names[0].events, "READ", more),
        _through_withdrawal(trials[1], "topic", names[1].replies, "WRITE", more),
        _through_withdrawal(trials[2], "topic", names[2].dead_letters, "WRITE", bad),
        _through_withdrawal(trials[3], "group", names[3].group, "READ", more),
    )
    for trial, delivered in zip(trials, (40, 40, 20, 40), strict=True):
        report = await trial.trial.audit()
        if trial is trials[3] and report.duplicated.count <= len(more):
            # Who has no right to the group commits nothing: expelled, what it delivered meanwhile may be sent again.
            report.duplicated.count = 0
        assert report.content, report.lines()
        assert report.delivered == delivered
    assert len(await trials[2].trial.records(names[2].dead_letters)) == 1


async def command(guarded: Guarded, *arguments: str, **settings: str) -> tuple[int, str]:
    """Run one of the commands as this user; its exit code and what it wrote."""
    given = by_password("SCRAM-SHA-512", guarded.user) | settings
    async with guarded.process(command=("convoy", *arguments), **given) as process:
        return await process.ended(SIDE_BY_SIDE_SECONDS), process.log()


async def test_the_check_names_what_brokers_refuse(guard: Guard) -> None:
    """Each is missing one thing; who has all the rights of docs/security.md, and nothing else, passes."""
    trials = [await guard() for _ in range(4)]
    for trial in trials[:3]:
        await asyncio.to_thread(trial.kafka.grant, trial.user, *trial.rights)
    events, group = trials[3].trial.topics.events, trials[3].trial.topics.group
    another = write(trials[2].folder, "another.pem", Authority("another").pem())
    said = await asyncio.gather(
        command(trials[0], "check"),
        command(trials[1], "check", KAFKA__SASL_PASSWORD="another-password"),
        command(trials[2], "check", KAFKA__SSL_CA_FILE=another),
        command(trials[3], "check"),
    )
    wrong = [[line for line in text.splitlines() if line.startswith("\u2717")] for _, text in said]
    assert [code for code, _ in said] == [0, 1, 1, 1], said
    assert wrong[0] == []
    assert "grant DESCRIBE_CONFIGS on topic" in said[0][1], "what it cannot see, it says"
    for lines, words in ((wrong[1], f"broker.sasl: {trials[1].kafka.address('sasl')}: "), (wrong[2], "broker.tls: ")):
        (line,) = lines
        assert words in line
    assert "KAFKA__SASL_PASSWORD" in wrong[1][0]
    assert "KAFKA__SSL_CA_FILE" in wrong[2][0]
    assert len(wrong[3]) == 4
    for words in (f"grant READ on topic {events}", f"grant READ on group {group}", "grant WRITE on topic"):
        assert any(words in line for line in wrong[3])


async def test_the_rights_named_for_the_commands_suffice(guard: Guard) -> None:
    guarded = await guard()
    topics = guarded.trial.topics
    await asyncio.to_thread(guarded.kafka.grant, guarded.user, *guarded.rights)
    await guarded.trial.publish([Record(b"conv_000", json.dumps({"no": "event"}).encode())])
    async with guarded.scram() as service:
        await service.ready()
        await guarded.trial.finished()
        assert await service.stop() == 0
    assert (await command(guarded, "dlq", "list"))[0] == 1, "not with the rights of the service alone"
    redrive = f"convoy-redrive-{topics.dead_letters}"
    await asyncio.to_thread(
        guarded.kafka.grant,
        guarded.user,
        ("topic", topics.dead_letters, "READ"),
        ("topic", topics.events, "WRITE"),
        ("transactional_id", redrive, "WRITE"),
        ("transactional_id", redrive, "DESCRIBE"),
        ("broker", "kafka-cluster", "CREATE"),
    )
    code, listed = await command(guarded, "dlq", "list")
    assert code == 0, listed
    assert "invalid_event" in listed
    code, said = await command(guarded, "dlq", "redrive", "--execute")
    assert code == 0, said
    assert len(await guarded.trial.records(topics.events)) == 2
    fresh = {"KAFKA__EVENTS_TOPIC": f"{topics.prefix}.a", "KAFKA__REPLY_TOPIC": f"{topics.prefix}.b"}
    code, said = await command(guarded, "topics", "--partitions", "1", **fresh)
    assert code == 0, said
    assert f"{topics.prefix}.a: created" in said


async def test_replies_to_a_topic_that_may_not_be_written_to_go_to_the_default_and_block_nobody(guard: Guard) -> None:
    guarded = await guard()
    closed = guarded.trial.topics.ledger
    await asyncio.to_thread(guarded.kafka.grant, guarded.user, *guarded.rights, ("topic", closed, "DESCRIBE"))
    async with guarded.scram(REPLY__ALLOWED_TOPICS=closed) as service:
        await service.ready()
        records = [
            replace(record, headers=[("reply_to", closed.encode())]) for record in chat(conversations=5, turns=4)
        ]
        await guarded.trial.publish(records)
        await guarded.trial.finished()
        assert [line for line in warnings(service) if "may not write to an allowed reply topic" in line]
        assert await service.stop() == 0
    await guarded.judged(20)
    assert len(await guarded.trial.replies()) == 20


# Who may know what


async def test_at_its_most_talkative_it_keeps_keys_and_messages_to_itself(guard: Guard) -> None:
    """What its log must not hold is looked for when the process ends, as after every test."""
    guarded = await guard()
    await asyncio.to_thread(guarded.kafka.grant, guarded.user, *guarded.rights)
    bad = [Record(b"conv_000", json.dumps({"conversation_id": "conv_000", "item": "conv_000 says 9"}).encode())]
    async with guarded.scram(LOG__LEVEL="debug", API__EXTRA_HEADERS='{"X-Gateway": "hush-of-the-gateway"}') as service:
        await service.ready()
        await guarded.delivers()
        await guarded.trial.publish(bad)
        await guarded.trial.finished()
        shown = [
            (await service.get(path)).text for path in ("/status", "/metrics", "/readyz", "/livez", "/asyncapi.json")
        ]
        assert await service.stop() == 0
    output = service.log() + "".join(shown)
    for kept in (PASSWORD, API_KEY, "hush-of-the-gateway", "Bearer", " says "):
        assert kept not in output
    assert "conv_00" not in "".join(shown), "conversations are shown as hashes"


async def test_a_key_that_is_replaced_in_its_mounted_secret_is_used_without_a_restart(guard: Guard) -> None:
    guarded = await guard()
    await asyncio.to_thread(guarded.kafka.grant, guarded.user, *guarded.rights)
    secrets = guarded.folder / "secrets"
    mount(secrets, 1, "sk-key-of-yesterday")
    settings = {"SECRETS_DIR": str(secrets), **by_password("SCRAM-SHA-512", guarded.user)}
    async with unset(guarded, "API__KEY", settings) as service:
        await service.ready()
        await guarded.trial.publish(chat(conversations=5, turns=4))
        await until("the circuit to open", lambda: _circuit(service, "key_rejected"))
        mount(secrets, 2, API_KEY)
        await guarded.trial.finished()
        assert any(line["message"] == "the API key was changed" for line in service.lines())
        assert await service.stop() == 0
        assert "sk-key-of-yesterday" not in service.log()
        assert API_KEY not in service.log()
    await guarded.judged(20)


def mount(folder: Path, number: int, key: str) -> None:
    """Write the secret as a kubelet does: a folder of its own, and one link that is replaced as a whole."""
    fresh = folder / f"..{number}"
    fresh.mkdir(parents=True)
    (fresh / "CONVOY_API__KEY").write_text(key)
    link = folder / "..next"
    link.symlink_to(fresh.name)
    link.replace(folder / "..data")
    if not (name := folder / "CONVOY_API__KEY").is_symlink():
        name.symlink_to("..data/CONVOY_API__KEY")


def unset(guarded: Guarded, name: str, settings: dict[str, str]) -> ServiceProcess:
    """A process of the trial without one of its settings."""
    given = guarded.trial.settings(
        KAFKA__BOOTSTRAP_SERVERS=guarded.kafka.address("sasl"),
        KAFKA__SECURITY_PROTOCOL="SASL_SSL",
        KAFKA__SSL_CA_FILE=write(guarded.folder, "ca.pem", guarded.kafka.authority.pem()),
        **settings,
    )
    del given[name]
    return ServiceProcess(given, guarded.folder)


async def _circuit(service: ServiceProcess, reason: str) -> bool:
    return bool((await service.status())["circuit"]["reason"] == reason)
