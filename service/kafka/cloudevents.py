"""CloudEvents over Kafka, binary and structured: the envelope taken off, and what it says kept.

Source: the CloudEvents specification 1.0.2 and its Kafka protocol binding 1.0.2. Binary: attributes are headers
``ce_*``, the value is the data. Structured: the content type is ``application/cloudevents+json``, the value a JSON
object with the attributes and ``data`` (or ``data_base64``).
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

STRUCTURED = b"application/cloudevents+json"
_NOTHING = msgspec.Raw(b"")


class CloudEvent(NamedTuple):
    """What the envelope said; ``data`` is the JSON inside."""

    data: bytes
    event_id: str
    subject: str | None
    time: str | None


class CloudEventError(Exception):
    """The record claims to be a CloudEvent and is none; the message names the attribute and the rule."""


class _Structured(msgspec.Struct):
    specversion: str
    id: str
    source: str
    subject: str | None = None
    time: str | None = None
    data: msgspec.Raw = _NOTHING
    data_base64: str | None = None


_decode_structured = msgspec.json.Decoder(_Structured).decode


def unwrap(headers: Sequence[tuple[str, bytes | None]], value: bytes) -> CloudEvent | None:
    """Take the envelope off; ``None`` when there is none.

    Raises:
        CloudEventError: an attribute that must be there is missing or is no text.
        msgspec.DecodeError: a structured event that is no JSON object of the right form.
    """
    attributes: dict[str, bytes | None] = {}
    for name, content in headers:
        lower = name.lower()
        if lower == "content-type" and content is not None and content.lower().startswith(STRUCTURED):
            return _unwrap_structured(value)
        if lower.startswith("ce_"):
            attributes[lower] = content
    if "ce_specversion" not in attributes and "ce_id" not in attributes:
        return None
    return CloudEvent(
        value,
        f"{_required(attributes, 'ce_source')}/{_required(attributes, 'ce_id')}",
        _text(attributes, "ce_subject"),
        _text(attributes, "ce_time"),
    )


def _unwrap_structured(value: bytes) -> CloudEvent:
    event = _decode_structured(value)
    if not event.id or not event.source:
        raise CloudEventError("id and source: must not be empty")
    data = bytes(event.data)
    if event.data_base64 is not None:
        try:
            data = base64.b64decode(event.data_base64, validate=True)
        except (binascii.Error, ValueError):
            raise CloudEventError("data_base64: is no base64") from None
        str(data, "utf-8")
    return CloudEvent(data, f"{event.source}/{event.id}", event.subject, event.time)


def _required(attributes: dict[str, bytes | None], name: str) -> str:
    text = _text(attributes, name)
    if not text:
        raise CloudEventError(f"{name}: missing")
    return text


def _text(attributes: dict[str, bytes | None], name: str) -> str | None:
    content = attributes.get(name)
    if content is None:
        return None
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError:
        raise CloudEventError(f"{name}: is no text") from None
