"""How JSON that others send is read: an object with these fields and no others, of these types and no others.

"3" is no number, a null stands for the default, and of what is wrong the first is named: a million wrong values make
one error, at once.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, model_validator

T = TypeVar("T")


class _FailFast(FailFast):
    """One that can be part of a union."""

    __hash__ = object.__hash__


#: A list that is looked at up to the first thing wrong with it: a million of them would take a minute to name.
Listed = Annotated[list[T], _FailFast()]


class Strict(BaseModel):
    """A JSON object with these fields and no others; of those it is told of the first."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if type(values) is not dict:
            return values
        given = {name: value for name, value in values.items() if value is not None}
        known = cls.model_fields.keys() | {field.alias for field in cls.model_fields.values()}
        for name in list(filter(lambda name: name not in known, given))[1:]:
            del given[name]
        return given
