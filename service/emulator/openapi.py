"""The API's description in OpenAPI 3.1, as `/openapi.json` shows it.

Says of the API what `contract` does, in another language; a test has a stranger's tool compare the two. Must not
know faults: what they answer is nobody's promise.
"""

from __future__ import annotations

from typing import Any, Final

from service.emulator.contract import (
    DEFAULT_PAGE,
    MAX_ITEMS,
    MAX_METADATA_KEY,
    MAX_METADATA_PAIRS,
    MAX_METADATA_VALUE,
    MAX_PAGE,
    OTHER_PARTS,
    ROLES,
    TEXT_PARTS,
    Operation,
)

Json = dict[str, Any]


def describe(*, base_path: str, needs_key: bool, version: str) -> Json:
    """Return the whole description of the API under `base_path`."""
    conversation, items, item = "/conversations/{conversation_id}", "/items", "/{item_id}"
    document: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "Conversations API (emulated)",
            "version": version,
            "description": "The OpenAI-compatible Conversations API as Convoy's emulator serves it.",
        },
        "servers": [{"url": base_path or "/"}],
        "paths": {
            "/conversations": {"post": _CREATE_CONVERSATION},
            conversation: {
                "parameters": [_ref("parameters", "conversation_id")],
                "get": _operation("retrieve_conversation", "Retrieve a conversation", _CONVERSATION, 404),
                "post": _UPDATE_CONVERSATION,
                "delete": _operation("delete_conversation", "Delete a conversation and its items", _DELETED, 404),
            },
            conversation + items: {
                "parameters": [_ref("parameters", "conversation_id")],
                "get": _LIST_ITEMS,
                "post": _CREATE_ITEMS,
            },
            conversation + items + item: {
                "parameters": [_ref("parameters", "conversation_id"), _ref("parameters", "item_id")],
                "get": _operation("retrieve_item", "Retrieve an item", _ITEM, 404),
                "delete": _operation("delete_item", "Delete an item; shows its conversation", _CONVERSATION, 404),
            },
        },
        "components": {
            "parameters": {name: _id_parameter(name) for name in ("conversation_id", "item_id")},
            "responses": _REFUSALS,
            "schemas": _SCHEMAS,
        },
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _schema(name: str) -> Json:
    return _ref("schemas", name)


def _id_parameter(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


_CONVERSATION: Final = _schema("Conversation")
_DELETED: Final = _schema("DeletedConversation")
_ITEM: Final = _schema("Item")


def _operation(name: Operation, summary: str, shown: Json, *refusals: int, **more: Any) -> Json:
    answer = {"description": "Done.", "content": {"application/json": {"schema": shown}}}
    # Every operation reads its body, asked for or not: the key, and then JSON of a bearable size, come first.
    statuses = sorted({400, 401, 413, *refusals})
    responses = {"200": answer, **{str(status): _ref("responses", str(status)) for status in statuses}}
    return {"operationId": name, "summary": summary, "responses": responses, **more}


def _body(name: str, *, required: bool) -> Json:
    return {"required": required, "content": {"application/json": {"schema": _schema(name)}}}


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _links(operation: Json, *targets: Operation, **parameters: str) -> Json:
    """Tell where an id of the answer leads."""
    operation["responses"]["200"]["links"] = {
        target: {"operationId": target, "parameters": parameters} for target in targets
    }
    return operation


_CREATE_CONVERSATION: Final = _links(
    _operation(
        "create_conversation",
        f"Create a conversation, with up to {MAX_ITEMS} items",
        _CONVERSATION,
        requestBody=_body("NewConversation", required=False),
    ),
    "retrieve_conversation",
    "update_conversation",
    "create_items",
    "list_items",
    "delete_conversation",
    conversation_id="$response.body#/id",
)
_UPDATE_CONVERSATION: Final = _operation(
    "update_conversation",
    "Replace a conversation's metadata",
    _CONVERSATION,
    404,
    requestBody=_body("Update", required=True),
)
_CREATE_ITEMS: Final = _links(
    _operation(
        "create_items",
        f"Add 1 to {MAX_ITEMS} items to the end of a conversation",
        _schema("Items"),
        404,
        requestBody=_body("NewItems", required=True),
    ),
    "retrieve_item",
    "delete_item",
    conversation_id="$request.path.conversation_id",
    item_id="$response.body#/last_id",
)
_LIST_ITEMS: Final = _operation(
    "list_items",
    "List a conversation's items",
    _schema("Items"),
    404,
    parameters=[
        _query("after", {"type": "string"}, "The item behind which to begin; 400 where it is not there."),
        _query(
            "limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE}, "Items a page."
        ),
        _query("order", {"type": "string", "enum": ["asc", "desc"], "default": "desc"}, "Oldest or newest first."),
    ],
)

_REFUSALS: Final = {
    status: {"description": text, "content": {"application/json": {"schema": _schema("Refusal")}}}
    for status, text in {
        "400": "The request is not as it should be; `param` says where.",
        "401": "No key, or a wrong one.",
        "404": "There is no such conversation or item.",
        "413": "The body is too large.",
    }.items()
}


def _object(properties: Json, *required: str, **more: Any) -> Json:
    return {"type": "object", "properties": properties, "required": list(required), **more}


_METADATA: Final[Json] = {
    "type": ["object", "null"],
    "maxProperties": MAX_METADATA_PAIRS,
    "propertyNames": {"maxLength": MAX_METADATA_KEY},
    "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE},
}
_NEW_ITEMS: Final[Json] = {"type": "array", "items": _schema("NewItem"), "maxItems": MAX_ITEMS}
_TEXT: Final[Json] = {"type": "string"}
_SCHEMAS: Final[Json] = {
    "NewConversation": _object({"metadata": _METADATA, "items": {**_NEW_ITEMS, "type": ["array", "null"]}}),
    "Update": _object({"metadata": _METADATA}, "metadata"),
    "NewItems": _object({"items": {**_NEW_ITEMS, "minItems": 1}}, "items"),
    "NewItem": _object(
        {
            "type": {"const": "message"},
            "role": {"enum": list(ROLES)},
            "content": {"anyOf": [_TEXT, {"type": "array", "items": _schema("Part"), "minItems": 1}]},
        },
        "type",
        "role",
        "content",
    ),
    "Part": {
        "oneOf": [
            _object({"type": {"enum": list(TEXT_PARTS)}, "text": _TEXT}, "type", "text"),
            _object({"type": {"enum": list(OTHER_PARTS)}}, "type"),
        ]
    },
    "Item": _object(
        {
            "id": _TEXT,
            "type": {"const": "message"},
            "role": {"enum": list(ROLES)},
            "content": {"type": "array", "items": _schema("Part"), "minItems": 1},
            "status": {"enum": ["completed", "in_progress", "incomplete"]},
        },
        *("id", "type", "role", "content", "status"),
    ),
    "Items": _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": _ITEM, "maxItems": MAX_PAGE},
            "first_id": {"type": ["string", "null"]},
            "last_id": {"type": ["string", "null"]},
            "has_more": {"type": "boolean"},
        },
        *("object", "data", "first_id", "last_id", "has_more"),
        additionalProperties=False,
    ),
    "Conversation": _object(
        {
            "id": _TEXT,
            "object": {"const": "conversation"},
            "created_at": {"type": "integer", "minimum": 0},
            "metadata": {**_METADATA, "type": "object"},
        },
        *("id", "object", "created_at", "metadata"),
        additionalProperties=False,
    ),
    "DeletedConversation": _object(
        {"id": _TEXT, "object": {"const": "conversation.deleted"}, "deleted": {"const": True}},
        *("id", "object", "deleted"),
        additionalProperties=False,
    ),
    "Refusal": _object(
        {
            "error": _object(
                {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
                *("message", "type", "param", "code"),
                additionalProperties=False,
            )
        },
        "error",
        additionalProperties=False,
    ),
}
