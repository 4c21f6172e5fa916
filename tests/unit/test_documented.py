"""The fields of models are described by the docstrings below them."""

from __future__ import annotations

import sys

import pytest
from pydantic import Field, create_model

from service.documented import Documented


class Parent(Documented):
    """A parent."""

    first: int
    """The first one,
    in two lines."""
    second: int = 2
    described: int = Field(default=3, description="In the field.")
    """In the docstring."""


class Child(Parent):
    """A child."""

    first: int = 0
    third: int = Field(default=3, alias="Third")
    """The third one."""
    second: int = 4
    """The child's own."""


class Holder(Documented):
    """Something with a child."""

    child: Child
    """The child in it."""


def described(model: type[Documented]) -> dict[str, str | None]:
    return {
        name: field.get("description") for name, field in model.model_json_schema()["properties"].items()
    }


def test_docstring_below_a_field_describes_it() -> None:
    assert described(Parent) == {
        "first": "The first one,\nin two lines.",
        "second": None,
        "described": "In the field.",
    }


def test_inherited_fields_keep_their_docstrings_and_aliases_are_known() -> None:
    assert described(Child) == {
        "first": "The first one,\nin two lines.",
        "second": "The child's own.",
        "described": "In the field.",
        "Third": "The third one.",
    }


def test_model_in_another_is_described_too() -> None:
    schema = Holder.model_json_schema()
    assert schema["properties"]["child"]["description"] == "The child in it."
    assert schema["$defs"]["Child"]["properties"]["Third"]["description"] == "The third one."


@pytest.mark.parametrize("module", [__name__, "builtins"])
def test_model_made_of_fields_has_the_docstrings_of_its_parent(module: str) -> None:
    made = create_model("Made", __base__=Parent, __module__=module, fourth=(int, 4))
    assert described(made)["first"] == "The first one,\nin two lines."
    assert described(made)["fourth"] is None


def test_no_source_is_parsed_when_a_model_is_defined() -> None:
    parsed = list[str]()

    def watch(frame: object, event: str, _: object) -> None:
        code = getattr(frame, "f_code", None)
        if event == "call" and code is not None:
            parsed.append(code.co_name)

    sys.setprofile(watch)
    try:

        class Late(Documented):
            """Defined while it is watched."""

            field: int
            """A field."""

    finally:
        sys.setprofile(None)
    assert "getsource" not in parsed
    assert "getsourcelines" not in parsed
    assert described(Late) == {"field": "A field."}
