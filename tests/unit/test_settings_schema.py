"""The schema of the settings admits what the settings admit and refuses what they refuse."""

from __future__ import annotations

from typing import Any, get_args

import annotated_types
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, SecretStr, ValidationError

from service.commands.settings_schema import settings_schema
from service.settings import groups, variables

SCHEMA = settings_schema()
EVERY = [(group, name) for group, model in groups().items() for name in model.model_fields]


def admits(group: str, name: str, value: Any) -> bool:
    return bool(Draft202012Validator(SCHEMA).is_valid({group: {name: value}}))


def model_admits(group: str, name: str, value: Any) -> bool:
    adapter: type[BaseModel] = groups()[group]
    try:
        adapter.model_validate({name: value})
    except ValidationError as error:
        return not any(detail["loc"] == (name,) for detail in error.errors())
    return True


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_it_names_every_setting_by_its_variable_and_none_twice() -> None:
    named = [
        setting["x-variable"] for group in SCHEMA["properties"].values() for setting in group["properties"].values()
    ]
    assert sorted(named) == sorted(variables())


def test_it_admits_the_defaults_and_says_them() -> None:
    defaults = {
        group: {name: setting["default"] for name, setting in schema["properties"].items()}
        for group, schema in SCHEMA["properties"].items()
    }
    Draft202012Validator(SCHEMA).validate(defaults)
    assert defaults == {group: model().model_dump(mode="json") for group, model in groups().items()}


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_each_setting_says_what_it_does_and_what_its_unit_is(group: str, name: str) -> None:
    setting = SCHEMA["properties"][group]["properties"][name]
    assert setting["description"].endswith(".")
    if name.endswith(("_seconds", "_bytes")):
        assert setting["x-unit"] in {"s", "B"}


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_secrets_are_marked_and_nothing_else_is(group: str, name: str) -> None:
    annotation = groups()[group].model_fields[name].annotation
    secret = annotation is SecretStr or SecretStr in get_args(annotation)
    setting = SCHEMA["properties"][group]["properties"][name]
    assert setting.get("x-secret", False) == setting.get("writeOnly", False) == secret
    assert secret or not name.endswith(("password", "secret")), "is this no secret?"


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_it_draws_the_bounds_where_the_settings_draw_them(group: str, name: str) -> None:
    metadata = groups()[group].model_fields[name].metadata
    found: list[float] = []
    for rule in metadata:
        match rule:
            case annotated_types.Ge(bound) | annotated_types.Le(bound):
                found.append(float(str(bound)))
            case annotated_types.Gt(bound) | annotated_types.Lt(bound):
                found.append(float(str(bound)))
    for bound in found:
        for value in (bound - 1, bound, bound + 1):
            assert admits(group, name, value) == model_admits(group, name, value), value


@pytest.mark.parametrize("value", [[], {"x": []}, object])
def test_what_is_of_another_kind_is_refused(value: Any) -> None:
    for group, name in EVERY:
        assert not admits(group, name, value), name


def test_a_name_that_is_no_setting_is_refused() -> None:
    assert not admits("batch", "max_itmes", 3)
    assert not Draft202012Validator(SCHEMA).is_valid({"bacth": {}})
