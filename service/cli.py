"""The command line: names and options of the commands, and nothing of what they do.

Exit codes: 0 ok (a drained SIGTERM included), 1 a fault, 2 usage or settings.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from service import __version__
from service.settings import Settings, SettingsError, load

cli = typer.Typer(
    name="convoy",
    help="Forwards message events from Kafka to a Conversations API: in order, in batches, without loss.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


dlq = typer.Typer(help="Dead letters: see them, understand them, send them again.", no_args_is_help=True)
cli.add_typer(dlq, name="dlq")


def _moment(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)


def _finite(value: float | None) -> float | None:
    """Refuse what bounds let through: NaN, which compares with nothing, and infinity."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter("must be a finite number")
    return value


Reason = Annotated[str | None, typer.Option(help="Only this reason, such as rejected.")]
Conversation = Annotated[str | None, typer.Option(help="Only this conversation.")]
Since = Annotated[
    dt.datetime | None,
    typer.Option(parser=_moment, metavar="TIME", help="Failed at or after (RFC 3339; without a zone: UTC)."),
]
Until = Annotated[dt.datetime | None, typer.Option(parser=_moment, metavar="TIME", help="Failed before.")]
Text = Annotated[str | None, typer.Option(help="In the error's code or message.")]


def main() -> None:
    """Run the command line."""
    cli()


def _settings(*, need_key: bool = False) -> Settings:
    try:
        return load(need_key=need_key)
    except SettingsError as error:
        typer.echo(f"convoy: {error}", err=True)
        raise typer.Exit(2) from None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"convoy {__version__}")
        raise typer.Exit


@cli.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Settings come from CONVOY_* variables; `convoy config` shows them."""
    # A command answers in its own words; `run` sets logging up for a service.
    logging.basicConfig(level=logging.CRITICAL)


@cli.command()
def run() -> None:
    """Run the service until told to stop."""
    from service.commands.run import run as run_service  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(run_service(_settings(need_key=True)))


@cli.command()
def config(
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of variables.")] = False,
    reference: Annotated[bool, typer.Option("--reference", help="All there are, as Markdown.")] = False,
    json_schema: Annotated[bool, typer.Option("--json-schema", help="All there are, as a JSON Schema.")] = False,
) -> None:
    """Show the effective settings, secrets masked."""
    from service.commands.config import show  # noqa: PLC0415

    if json_schema:
        from service.commands.settings_schema import document as write_schema  # noqa: PLC0415

        typer.echo(write_schema())
        return
    if reference:
        from service.commands.reference import reference as write_reference  # noqa: PLC0415

        typer.echo(write_reference(), nl=False)
        return
    typer.echo(show(_settings(), as_json=json))


@cli.command()
def check(
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
    round_trip: Annotated[
        str, typer.Option(metavar="TOPIC", help="Write one empty record to this topic, and read it back.")
    ] = "",
) -> None:
    """Check settings, brokers, topics, rights, API and key before a start; changes nothing."""
    from service.commands.check import check as run_checks  # noqa: PLC0415

    raise typer.Exit(run_checks(as_json=json, round_trip_topic=round_trip))


@cli.command()
def topics(
    partitions: Annotated[int, typer.Option(min=1, max=10_000, help="Partitions of each topic.")] = 12,
    replication_factor: Annotated[
        int | None, typer.Option(min=1, max=100, help="Copies of each; default: one a broker, three at most.")
    ] = None,
) -> None:
    """Create the topics; those that exist are left as they are."""
    from service.commands.topics import topics as create  # noqa: PLC0415

    raise typer.Exit(create(_settings().kafka, partitions=partitions, replication_factor=replication_factor))


@cli.command()
def publish(
    file: Annotated[typer.FileBinaryRead, typer.Argument(help="JSON lines, an event each; - for standard input.")],
) -> None:
    """Publish events from a file of JSON lines to the events topic."""
    from service.commands.publish import publish as send  # noqa: PLC0415

    raise typer.Exit(send(_settings().kafka, file))


@cli.command()
def demo(
    events: Annotated[int, typer.Option(min=1, max=1_000_000, help="Events to publish.")] = 4000,
    conversations: Annotated[int, typer.Option(min=1, max=10_000, help="Conversations they belong to.")] = 300,
    rate: Annotated[float, typer.Option(callback=_finite, min=1, help="Events a second, on average.")] = 500.0,
    seed: Annotated[int, typer.Option(help="Seed of the events, and of the API's chance.")] = 1,
    latency: Annotated[
        float, typer.Option(callback=_finite, min=0, max=10, help="Seconds half of the API's answers take.")
    ] = 0.05,
    broker: Annotated[str, typer.Option(metavar="HOST:PORT", help="Kafka to use; default: an embedded one.")] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Stay up after the summary, until Ctrl-C.")] = False,
    ops_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of /metrics; 0: any free one.")] = 0,
) -> None:
    """Show the whole of it on this machine: embedded Kafka, emulated API, live view, audit."""
    from service.commands.demo import Options, run_demo  # noqa: PLC0415

    raise typer.Exit(
        run_demo(
            Options(
                events=events,
                conversations=conversations,
                rate=rate,
                seed=seed,
                latency_seconds=latency,
                broker=broker,
                keep=keep,
                ops_port=ops_port,
            )
        )
    )


@cli.command()
def emulator(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8090,
    key: Annotated[str | None, typer.Option(help="Bearer key to insist on.")] = None,
    latency: Annotated[float, typer.Option(callback=_finite, min=0, help="Seconds every answer takes.")] = 0.0,
    faults: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Script of faults, JSON or TOML.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of ids and of faults by chance.")] = 0,
    create_on_write: Annotated[
        bool, typer.Option("--create-on-write", help="Unknown conversations come into being.")
    ] = False,
    prefix: Annotated[str, typer.Option(help="Path before /conversations.")] = "/v1",
    timestamps_in_seconds: Annotated[
        bool, typer.Option("--timestamps-in-seconds", help="As OpenAI counts; default: milliseconds, as Alibaba does.")
    ] = False,
) -> None:
    """Run the emulated Conversations API on a port."""
    from service.commands.emulator import run_emulator  # noqa: PLC0415

    raise typer.Exit(
        run_emulator(
            faults_file=faults,
            host=host,
            port=port,
            key=key,
            latency_seconds=latency,
            seed=seed,
            create_on_write=create_on_write,
            prefix=prefix,
            timestamps_in_seconds=timestamps_in_seconds,
        )
    )


@cli.command()
def asyncapi(
    schemas: Annotated[
        Path | None, typer.Option(file_okay=False, help="Write the JSON Schemas into this folder.")
    ] = None,
) -> None:
    """Show the AsyncAPI document: topics, headers, payloads."""
    from service.commands.asyncapi import document, write_schemas  # noqa: PLC0415

    if schemas is not None:
        write_schemas(schemas)
        return
    typer.echo(document(_settings().kafka))


@dlq.command("list")
def dlq_list(
    reason: Reason = None,
    conversation: Conversation = None,
    since: Since = None,
    until: Until = None,
    text: Text = None,
    redriven: Annotated[bool, typer.Option("--redriven", help="Those already sent again too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Rows of the table at most.")] = 1000,
) -> None:
    """List dead letters."""
    from service.commands.dlq import Selection, show_list  # noqa: PLC0415

    selection = Selection((), reason, conversation, since, until, text, redriven)
    raise typer.Exit(show_list(_settings().kafka, selection, as_json=json, limit=limit))


@dlq.command("show")
def dlq_show(place: Annotated[str, typer.Argument(help="PARTITION-OFFSET, as the list shows it.")]) -> None:
    """Show one dead letter whole."""
    from service.commands.dlq import show_one  # noqa: PLC0415

    raise typer.Exit(show_one(_settings().kafka, place))


@dlq.command("redrive")
def dlq_redrive(
    places: Annotated[
        list[str] | None, typer.Argument(help="PARTITION-OFFSET, as the list shows; default: all chosen.")
    ] = None,
    reason: Reason = None,
    conversation: Conversation = None,
    since: Since = None,
    until: Until = None,
    text: Text = None,
    execute: Annotated[bool, typer.Option("--execute", help="Send them; without it, only say which.")] = False,
    topic: Annotated[str | None, typer.Option(help="Another topic than where they came from.")] = None,
    parking_topic: Annotated[str | None, typer.Option(help="For those redriven too often.")] = None,
    max_redrives: Annotated[int, typer.Option(min=1, help="How often an event is sent again at most.")] = 3,
    rate: Annotated[float | None, typer.Option(callback=_finite, min=0.001, help="Events a second at most.")] = None,
) -> None:
    """Send dead letters again; safe to interrupt and to run twice."""
    from service.commands.dlq import Aim, Redrive, Selection, send_again  # noqa: PLC0415

    selection = Selection(tuple(places or ()), reason, conversation, since, until, text)
    how = Redrive(execute, Aim(topic, parking_topic, max_redrives), rate)
    raise typer.Exit(send_again(_settings().kafka, selection, how))
