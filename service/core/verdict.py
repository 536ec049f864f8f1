"""What an answer means: the verdict table as one pure function.

Decides from status, error code, error form and transport fate alone what kind of thing happened to an
attempt. It knows nothing of batches, back-off or who else is failing; `service.core.delivery` acts on it.

Sources: the Conversations API reference (OpenAI, Alibaba Model Studio), RFC 9110 for statuses.
"""

from __future__ import annotations

import enum
import http
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.core.model import Answered, ErrorForm, Fate, Unanswered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.core.model import Answer, ErrorBody


class Kind(enum.StrEnum):
    """What happened to an attempt. The values are the ``verdict`` label of the metrics."""

    DELIVERED = "delivered"
    BUSY = "busy"
    """The conversation is locked: it alone waits, and never exhausts."""
    THROTTLED = "throttled"
    """Too much at once for the account: everybody slows down; nothing was stored."""
    TRANSIENT = "transient"
    """Trouble, and certainly nothing was stored."""
    AMBIGUOUS = "ambiguous"
    """Trouble, and it may have been stored: read back before anything is sent again."""
    OPERATOR = "operator"
    """Somebody has to mend something; until then nobody's message will pass."""
    CONVERSATION_NOT_FOUND = "conversation_not_found"
    FORBIDDEN = "forbidden"
    TOO_LARGE = "too_large"
    REJECTED = "rejected"
    """The API refuses the content of at least one item."""


REFUSALS = frozenset({Kind.CONVERSATION_NOT_FOUND, Kind.FORBIDDEN, Kind.TOO_LARGE, Kind.REJECTED})
"""Definite answers about this request: nothing of what was sent is wrong with the host."""

CODE_KINDS: Mapping[str, Kind] = {
    "conversation_locked": Kind.BUSY,
    "rate_limit_exceeded": Kind.THROTTLED,
    "insufficient_quota": Kind.OPERATOR,
    "invalid_api_key": Kind.OPERATOR,
    "invalidapikey": Kind.OPERATOR,
    "arrearage": Kind.OPERATOR,
    "billing_not_active": Kind.OPERATOR,
    "prepaidbilloverdue": Kind.OPERATOR,
    "postpaidbilloverdue": Kind.OPERATOR,
    "commoditynotpurchased": Kind.OPERATOR,
    "allocationquota.freetieronly": Kind.OPERATOR,
    "conversation_not_found": Kind.CONVERSATION_NOT_FOUND,
}
"""Error codes that say more than their status, in lower case. Settings may add to them."""

STATUS_KINDS: Mapping[int, Kind] = {
    401: Kind.OPERATOR,
    402: Kind.OPERATOR,
    403: Kind.FORBIDDEN,
    404: Kind.OPERATOR,
    405: Kind.OPERATOR,
    407: Kind.OPERATOR,
    408: Kind.TRANSIENT,
    409: Kind.BUSY,
    413: Kind.TOO_LARGE,
    421: Kind.OPERATOR,
    423: Kind.BUSY,
    426: Kind.OPERATOR,
    429: Kind.THROTTLED,
}
"""What a status means when its error code says no more; other 3xx are the operator's, other 4xx refusals."""

WRONG_URL_CODES = frozenset({"invalid_url", "unknown_url"})
WRONG_URL_WORDS: Mapping[int, tuple[str, ...]] = {
    400: ("url error, please check url", "invalid url provided in your request"),
    404: ("invalid url", "unknown request url"),
}
"""How an error in the API's own form begins when the path is wrong: DashScope with 400, OpenAI with 404.

Only with these statuses: the same words with another one speak of a URL inside an item.
"""
RELAYED_STATUSES = frozenset({502, 504})
"""Said by one server of another (RFC 9110 §15.6): in whatever form, not the last word of the one that stores.
Cloudflare writes its 502 for OpenAI in OpenAI's form, and the number in ``code``."""


@dataclass(slots=True, frozen=True)
class Verdict:
    """One attempt judged.

    ``code`` is the API's error code, or a short word of our own; ``culprit`` the index of the item the
    error names; ``last_word`` is true when the API itself said it has finished with the request; ``foreign``
    when a refusal is in no form of the API's: a gateway or firewall may have said it, of this request or of all.
    """

    kind: Kind
    code: str = ""
    message: str = ""
    status: int | None = None
    culprit: int | None = None
    retry_after_seconds: float | None = None
    last_word: bool = False
    foreign: bool = False


_DELIVERED = Verdict(Kind.DELIVERED, status=200)


def judge(answer: Answer, sent: int, overrides: Mapping[str, Kind] | None = None) -> Verdict:
    """Judge the ``answer`` to an attempt that carried ``sent`` items.

    ``overrides`` maps error codes in lower case to kinds, for vendors whose codes are not known here.
    """
    if isinstance(answer, Unanswered):
        return _judge_silence(answer)
    status = answer.status
    if 200 <= status < 300:
        if answer.items is not None and len(answer.items) == sent:
            return _DELIVERED
        return Verdict(
            Kind.AMBIGUOUS, "unexpected_answer", f"status {status} without a list of the {sent} items sent", status
        )
    error = answer.error
    by_code = _kind_of_code(error.code.lower(), overrides or {}) if error else None
    kind = _kind(answer, by_code)
    return Verdict(
        kind,
        code=error.code if error else f"http_{status}",
        message=error.message if error else _phrase(status),
        status=status,
        culprit=error.culprit if error and error.culprit in range(sent) else None,
        retry_after_seconds=answer.retry_after_seconds,
        last_word=kind is not Kind.AMBIGUOUS or _is_last_word(status, error),
        foreign=kind in REFUSALS and by_code is None and not _own_form(status, error),
    )


def _judge_silence(answer: Unanswered) -> Verdict:
    if answer.fate is Fate.UNKNOWN:
        return Verdict(Kind.AMBIGUOUS, answer.code, answer.message)
    if answer.code == "tls_error":
        return Verdict(Kind.OPERATOR, answer.code, answer.message, last_word=True)
    return Verdict(Kind.TRANSIENT, answer.code, answer.message, last_word=True)


def _kind_of_code(code: str, overrides: Mapping[str, Kind]) -> Kind | None:
    return overrides.get(code) or CODE_KINDS.get(code) or (Kind.THROTTLED if code.startswith("throttling") else None)


def _kind(answer: Answered, by_code: Kind | None) -> Kind:
    status, error = answer.status, answer.error
    if status >= 500 or status < 200:
        # Whatever a server error says of its cause, it does not say that nothing was stored.
        return Kind.AMBIGUOUS
    if by_code is not None:
        return by_code
    if (error and _says_wrong_url(status, error)) or (status == 429 and answer.should_retry is False):
        return Kind.OPERATOR
    if status == 404 and _own_form(status, error):
        return Kind.CONVERSATION_NOT_FOUND
    return STATUS_KINDS.get(status) or (
        Kind.OPERATOR if status < 400 else Kind.TRANSIENT if answer.should_retry else Kind.REJECTED
    )


def _own_form(status: int, error: ErrorBody | None) -> bool:
    """Whether the body is an error the API itself wrote, not a gateway's.

    A ``{"error": "Not Found"}`` that only repeats the status is what web frameworks and proxies say of a
    path they do not know, some of them in OpenAI's form with the number for a code.
    """
    if error is None:
        return False
    phrase = _letters(_phrase(status))
    if _letters(error.message) != phrase:
        return True
    return error.form is not ErrorForm.FLAT and _letters(error.code) not in {"", str(status), phrase, f"{phrase}error"}


def _is_last_word(status: int, error: ErrorBody | None) -> bool:
    """Whether the API, by this error, has finished with the request: what is not stored now never will be."""
    if error is None or status in RELAYED_STATUSES or error.code == str(status):
        return False
    return error.form is not ErrorForm.FLAT or _own_form(status, error)


def _says_wrong_url(status: int, error: ErrorBody) -> bool:
    if status == 404 and error.code.lower() in WRONG_URL_CODES:
        return True
    return error.message.lower().startswith(WRONG_URL_WORDS.get(status, ()))


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return f"status {status}"
