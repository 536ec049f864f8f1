"""Knows the Conversations API by heart: what it accepts, how it answers and how it refuses.

Pure functions from decoded requests to values and from values to answers. Must not know the socket, what is
stored or the faults. Sources: Alibaba Model Studio, "OpenAI compatible - Conversations"; OpenAI, API
reference, "Conversations". The two share their shape; where only OpenAI shows a detail (codes and words of an
error, the `annotations` of an `output_text`), OpenAI's is taken.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec

from service.emulator.store import NewItem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.emulator.store import Conversation, Item

Operation = Literal[
    "create_conversation",
    "retrieve_conversation",
    "update_conversation",
    "delete_conversation",
    "create_items",
    "list_items",
    "retrieve_item",
    "delete_item",
]
OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)
WRITES: Final[tuple[Operation, ...]] = (
    "update_conversation",
    "delete_conversation",
    "create_items",
    "delete_item",
)
"""The operations that change a conversation; two of them at a time may be refused as `conversation_locked`."""

ErrorForm = Literal["openai", "flat", "dashscope", "text", "html"]
"""How an error looks: nested, flat, DashScope's own style, or no JSON at all."""

MAX_ITEMS: Final = 20
MAX_METADATA_PAIRS: Final = 16
MAX_METADATA_KEY: Final = 64
MAX_METADATA_VALUE: Final = 512
MAX_PAGE: Final = 100
DEFAULT_PAGE: Final = 20

ROLES: Final = ("user", "assistant", "system", "developer")
TEXT_PARTS: Final = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
OTHER_PARTS: Final = ("refusal", "input_image", "input_file")
_PARTS: Final = (*TEXT_PARTS, *OTHER_PARTS)
_SET_BY_THE_API: Final = ("id", "object", "status", "type", "role", "content", "created_at")

_JSON: Final = b"application/json"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Answer(msgspec.Struct, frozen=True):
    """An HTTP answer: status, headers but for content-type and content-length, and the body."""

    status: int
    body: bytes
    content_type: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Refusal(msgspec.Struct, frozen=True):
    """Why the API itself says no. `param` points into the request, as in `items[3].content`."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    type: str = "invalid_request_error"


class ListQuery(msgspec.Struct, frozen=True):
    """What to list: up to `limit` items behind the item id `after`."""

    after: str | None
    limit: int
    newest_first: bool


def json_answer(document: Any, *, status: int = 200) -> Answer:
    """Encode any JSON value as an answer."""
    return Answer(status, _encode(document))


def refusal_answer(
    refusal: Refusal,
    *,
    form: ErrorForm = "openai",
    request_id: str = "",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> Answer:
    """Put a refusal into one of the forms in which vendors and the gateways before them say no."""
    content_type, body = _JSON, b""
    match form:
        case "openai":
            error = {
                "message": refusal.message,
                "type": refusal.type,
                "param": refusal.param,
                "code": refusal.code,
            }
            body = _encode({"error": error})
        case "flat":
            body = _encode({"error": refusal.message})
        case "dashscope":
            body = _encode({"code": refusal.code, "message": refusal.message, "request_id": request_id})
        case "text":
            content_type, body = b"text/plain; charset=utf-8", refusal.message.encode()
        case "html":
            content_type, body = b"text/html; charset=utf-8", html_page(refusal.message)
    return Answer(refusal.status, body, content_type, headers)


def html_page(title: str) -> bytes:
    """Return the kind of page a gateway puts in the API's place."""
    text = html.escape(title, quote=False)
    return f"<html><head><title>{text}</title></head><body><h1>{text}</h1></body></html>\n".encode()


def gateway_not_found() -> Answer:
    """Return the 404 of a path the API does not have, in no form of the API's: it means a wrong base URL."""
    return json_answer({"detail": "Not Found"}, status=404)


def gateway_method_not_allowed(allowed: Sequence[str]) -> Answer:
    """Return the 405 of a path that exists, but not for this method."""
    headers = ((b"allow", ", ".join(allowed).encode()),)
    return Answer(405, _encode({"detail": "Method Not Allowed"}), headers=headers)


# -- requests ----------------------------------------------------------------------------------------------


def check_key(authorization: bytes | None, key: str | None) -> Refusal | None:
    """Check the bearer key, if one is wanted."""
    if key is None or authorization == b"Bearer " + key.encode():
        return None
    if authorization is None:
        return Refusal(
            401,
            "You didn't provide an API key. You need to provide your API key in an Authorization header using"
            " Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
        )
    return Refusal(401, "Incorrect API key provided.", "invalid_api_key")


def read_document(body: bytes) -> dict[str, Any] | Refusal:
    """Decode a request's body, which has to be a JSON object; an empty one stands for `{}`."""
    try:
        document = _decode(body) if body else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refusal(400, "We could not parse the JSON body of your request.")
    if not isinstance(document, dict):
        return Refusal(400, "Invalid body: expected an object.", "invalid_type")
    return document


def read_items(document: Mapping[str, Any], *, required: bool) -> list[NewItem] | Refusal:
    """Take the items out of a request: 1 to 20 where they are required, else up to 20 or none."""
    items = document.get("items")
    if items is None:
        return _missing("items") if required else []
    if not isinstance(items, list):
        return _wrong_type("items", "an array of objects", items)
    if required and not items:
        return Refusal(
            400,
            "Invalid 'items': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            "empty_array",
            "items",
        )
    if len(items) > MAX_ITEMS:
        return Refusal(
            400,
            f"Invalid 'items': array too long. Expected an array with maximum length {MAX_ITEMS},"
            f" but got an array with length {len(items)} instead.",
            "array_above_max_length",
            "items",
        )
    accepted = []
    for index, item in enumerate(items):
        new = _read_item(item, f"items[{index}]")
        if isinstance(new, Refusal):
            return new
        accepted.append(new)
    return accepted


def _read_item(item: Any, at: str) -> NewItem | Refusal:
    if not isinstance(item, dict):
        return _wrong_type(at, "an object", item)
    refusal = _check_choice(item.get("type"), ("message",), f"{at}.type")
    refusal = refusal or _check_choice(item.get("role"), ROLES, f"{at}.role")
    if refusal is not None:
        return refusal
    role: str = item["role"]
    content = _read_content(item.get("content"), role, f"{at}.content")
    if isinstance(content, Refusal):
        return content
    if len(item) == 3:
        return NewItem(role, content, {})
    return NewItem(role, content, {name: item[name] for name in item if name not in _SET_BY_THE_API})


def _read_content(content: Any, role: str, at: str) -> list[dict[str, Any]] | Refusal:
    """Bring content into the one form the API shows: a list of parts."""
    if content is None:
        return _missing(at)
    if isinstance(content, str):
        part_type = "output_text" if role == "assistant" else "input_text"
        return [_shown_part({"type": part_type, "text": content})]
    if not isinstance(content, list):
        return _wrong_type(at, "a string or an array of objects", content)
    if not content:
        return Refusal(400, f"Invalid '{at}': empty array. Expected at least one part.", "empty_array", at)
    for index, part in enumerate(content):
        refusal = _check_part(part, f"{at}[{index}]")
        if refusal is not None:
            return refusal
    return [_shown_part(part) for part in content]


def _check_part(part: Any, at: str) -> Refusal | None:
    if not isinstance(part, dict):
        return _wrong_type(at, "an object", part)
    refusal = _check_choice(part.get("type"), _PARTS, f"{at}.type")
    if refusal is None and part["type"] in TEXT_PARTS and not isinstance(part.get("text"), str):
        return _wrong_type(f"{at}.text", "a string", part["text"]) if "text" in part else _missing(f"{at}.text")
    return refusal


def _shown_part(part: dict[str, Any]) -> dict[str, Any]:
    # OpenAI gives every output_text its list of annotations, asked for or not: what a client reads back is
    # not byte for byte what it sent.
    if part["type"] == "output_text" and "annotations" not in part:
        return {**part, "annotations": []}
    return part


def read_metadata(document: Mapping[str, Any], *, required: bool) -> dict[str, str] | Refusal:
    """Take the metadata out of a request; null stands for none."""
    if required and "metadata" not in document:
        return _missing("metadata")
    metadata = document.get("metadata")
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        return _wrong_type("metadata", "an object", metadata)
    if len(metadata) > MAX_METADATA_PAIRS:
        return Refusal(
            400,
            f"Invalid 'metadata': too many properties. Expected an object with at most {MAX_METADATA_PAIRS}"
            f" properties, but got an object with {len(metadata)} properties instead.",
            "object_above_max_properties",
            "metadata",
        )
    for name, value in metadata.items():
        refusal = _check_pair(name, value)
        if refusal is not None:
            return refusal
    return metadata


def _check_pair(name: str, value: Any) -> Refusal | None:
    at = f"metadata.{name}"
    if len(name) > MAX_METADATA_KEY:
        message = f"Invalid 'metadata': a key is longer than {MAX_METADATA_KEY} characters."
        return Refusal(400, message, "string_above_max_length", "metadata")
    if not isinstance(value, str):
        return _wrong_type(at, "a string", value)
    if len(value) > MAX_METADATA_VALUE:
        message = f"Invalid '{at}': string too long. Expected at most {MAX_METADATA_VALUE} characters."
        return Refusal(400, message, "string_above_max_length", at)
    return None


def read_list_query(query: Mapping[str, str]) -> ListQuery | Refusal:
    """Read `after`, `limit` and `order`; parameters it does not know are ignored."""
    order = query.get("order", "desc")
    refusal = _check_choice(order, ("asc", "desc"), "order")
    if refusal is not None:
        return refusal
    limit_text = query.get("limit", str(DEFAULT_PAGE))
    digits = limit_text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        return _wrong_type("limit", "an integer", limit_text)
    limit = int(limit_text)
    if not 1 <= limit <= MAX_PAGE:
        code = "integer_below_min_value" if limit < 1 else "integer_above_max_value"
        message = f"Invalid 'limit': expected a value from 1 to {MAX_PAGE}, but got {limit} instead."
        return Refusal(400, message, code, "limit")
    return ListQuery(query.get("after"), limit, order == "desc")


def _missing(at: str) -> Refusal:
    return Refusal(400, f"Missing required parameter: '{at}'.", "missing_required_parameter", at)


def _wrong_type(at: str, expected: str, found: Any) -> Refusal:
    name = type(found).__name__
    return Refusal(400, f"Invalid type for '{at}': expected {expected}, but got {name} instead.", "invalid_type", at)


def _check_choice(value: Any, choices: Sequence[str], at: str) -> Refusal | None:
    if value is None:
        return _missing(at)
    if not isinstance(value, str):
        return _wrong_type(at, "a string", value)
    if value not in choices:
        supported = ", ".join(f"'{choice}'" for choice in choices)
        return Refusal(400, f"Invalid value: '{value}'. Supported values are: {supported}.", "invalid_value", at)
    return None


# -- answers -----------------------------------------------------------------------------------------------


def conversation_not_found(conversation_id: str) -> Refusal:
    """Refuse a conversation nobody created, or that is deleted."""
    return Refusal(404, f"Conversation with id '{conversation_id}' not found.")


def item_not_found(item_id: str, conversation_id: str) -> Refusal:
    """Refuse an item that this conversation does not have."""
    return Refusal(404, f"Item with id '{item_id}' not found in conversation with id '{conversation_id}'.")


def cursor_not_found(item_id: str) -> Refusal:
    """Refuse to list from an item that is not there."""
    return Refusal(400, f"Invalid 'after': no item with id '{item_id}' in this conversation.", "invalid_value", "after")


def body_too_large(max_bytes: int) -> Refusal:
    """Refuse a body for its size."""
    return Refusal(413, f"Request body too large: more than {max_bytes} bytes.", "request_too_large")


def conversation_answer(conversation: Conversation, *, in_seconds: bool) -> Answer:
    """Show a conversation. Alibaba counts `created_at` in milliseconds, OpenAI in seconds."""
    created_at = conversation.created_ms // 1000 if in_seconds else conversation.created_ms
    return json_answer(
        {
            "id": conversation.id,
            "object": "conversation",
            "created_at": created_at,
            "metadata": conversation.metadata,
        }
    )


def conversation_deleted_answer(conversation: Conversation) -> Answer:
    """Confirm that a conversation is gone."""
    return json_answer({"id": conversation.id, "object": "conversation.deleted", "deleted": True})


def item_answer(item: Item) -> Answer:
    """Show one item."""
    return Answer(200, item.document)


def items_answer(items: Sequence[Item], *, has_more: bool) -> Answer:
    """Show a page of items, put together from their stored documents without encoding any of them again."""
    first_id, last_id = (f'"{items[0].id}"', f'"{items[-1].id}"') if items else ("null", "null")
    tail = f'],"first_id":{first_id},"last_id":{last_id},"has_more":{"true" if has_more else "false"}}}'
    return Answer(200, b'{"object":"list","data":[' + b",".join([item.document for item in items]) + tail.encode())
