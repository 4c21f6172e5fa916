"""Models whose fields are described, in JSON schemas, by the docstrings below them.

pydantic has `use_attribute_docstrings` for this. But it parses the source of every model as soon as that is
imported, which took a tenth of the time of a start, for a document that few processes make.
"""

from __future__ import annotations

import ast
import inspect
from functools import cache
from itertools import pairwise
from textwrap import dedent
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema


class Documented(BaseModel):
    """A model whose JSON schema contains the docstrings of its fields."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> JsonSchemaValue:
        """Add the docstrings of the fields that have no other description."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        docstrings = {
            name: text for kind in reversed(cls.__mro__) for name, text in _docstrings(kind).items()
        }
        for name, field in cls.model_fields.items():
            if name in docstrings:
                properties[field.alias or name].setdefault("description", docstrings[name])
        return schema


@cache
def _docstrings(kind: type) -> dict[str, str]:
    """Return the docstrings of the fields that a class itself declares."""
    if kind is Documented or not issubclass(kind, Documented):
        return {}
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        # Not written as a class in a file, but created from fields.
        return {}
    [definition] = ast.parse(dedent(source)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for declared, below in pairwise(definition.body):
        match declared, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = inspect.cleandoc(text)
    return found
