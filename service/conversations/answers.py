"""What the API's bytes say, without judging it: answers and errors in every form they come in.

Error bodies come nested, flat, in DashScope's style or as no JSON at all; lists may lack ``object``,
``last_id`` or a content type. Sources: the OpenAI and Alibaba Model Studio API references; RFC 9110 §10.2.3.
"""

from __future__ import annotations

import email.utils
import re
from typing import TYPE_CHECKING, Any

import msgspec

from service.core.model import Answered, ErrorBody, ErrorForm

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_WAIT_SECONDS = 600.0
"""A longer Retry-After is taken for this: an answer must not put the service to sleep for a day."""
MAX_MESSAGE_CHARACTERS = 500
CULPRIT = re.compile(r"items[\[.](\d{1,4})")


class _ItemList(msgspec.Struct):
    data: list[msgspec.Raw]
    last_id: str | None = None
    has_more: bool | None = False


class _Identified(msgspec.Struct):
    id: str = ""


_decode_list = msgspec.json.Decoder(_ItemList).decode
_decode_id = msgspec.json.Decoder(_Identified).decode


def read_answer(status: int, headers: Mapping[str, str], body: bytes, *, wall_clock: float) -> Answered:
    """Read one answer; ``wall_clock`` (seconds since the epoch) is what a ``Retry-After`` date counts from."""
    if 200 <= status < 300:
        try:
            answer = _decode_list(_as_text(body))
            last_id = answer.last_id or (_decode_id(answer.data[-1]).id if answer.data else "")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Answered(status)
        return Answered(status, answer.data, last_id, bool(answer.has_more))
    return Answered(
        status,
        error=_error(body),
        retry_after_seconds=_retry_after(headers, wall_clock),
        should_retry={"true": True, "false": False}.get(headers.get("x-should-retry", "").lower()),
    )


def _as_text(body: bytes) -> bytes:
    """Body in UTF-8: its items go into replies as they are, and a decoder skips what it does not decode unseen."""
    if not body.isascii():
        try:
            str(body, "utf-8")
        except UnicodeDecodeError:
            return body.decode("utf-8", "replace").encode()
    return body


def _error(body: bytes) -> ErrorBody | None:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    if isinstance(error, dict):
        code = error.get("code") or error.get("type")
        return _body(ErrorForm.NESTED, code, error.get("message"), error.get("param"))
    if isinstance(error, str) and value.keys() <= {"error", "request_id"}:
        return _body(ErrorForm.FLAT, "", error, None)
    if isinstance(value.get("code"), str) and "message" in value:
        return _body(ErrorForm.DASHSCOPE, value["code"], value["message"], value.get("param"))
    return None


def _body(form: ErrorForm, code: Any, message: Any, param: Any) -> ErrorBody:
    named = CULPRIT.search(param) if isinstance(param, str) else None
    return ErrorBody(
        form,
        code=str(code)[:MAX_MESSAGE_CHARACTERS] if code is not None else "",
        message=str(message)[:MAX_MESSAGE_CHARACTERS] if message is not None else "",
        culprit=int(named[1]) if named else None,
    )


def _retry_after(headers: Mapping[str, str], wall_clock: float) -> float | None:
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    given = headers.get("retry-after")
    if given is None:
        return None
    seconds = _number(given)
    if seconds is None:
        try:
            seconds = email.utils.parsedate_to_datetime(given).timestamp() - wall_clock
        except (ValueError, TypeError, OverflowError):
            return None
    return _bounded(seconds)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _bounded(seconds: float) -> float | None:
    # Written so that NaN, which compares with nothing, is no wait either.
    return min(seconds, MAX_WAIT_SECONDS) if seconds > 0 else None
