"""Whether any value that ends satisfies a JSON schema: not where it requires, by `$ref`, a value of its own inside it.

A decoder held to such a schema opens brackets until its output is cut. What is asked here is only whether the nesting
can end: anything that is not understood (another document's `$ref`, a keyword of another shape) counts as ending, so
that no usable schema is refused, and a schema that is unsatisfiable for another reason is the compiler's to find.
"""

from collections.abc import Iterator
from typing import Any

from miniserve.errors import InvalidRequestError

MAX_VISITS = 50_000  # of parts of a schema; what people write takes some hundreds


def has_finite_value(schema: dict[str, Any]) -> bool:
    """Whether the nesting of the schema's values can end.

    Raises:
        InvalidRequestError: there are so many references, one into the other, that it takes long to tell.
    """
    return _Endings(schema).ends(schema)


class _Endings:
    """Knows which references' targets can end.

    They are found as a least fixed point: none at first, then those that can end if those found so far can, until no
    more are found.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        targets = {ref: target for ref in _references(document) if (target := _resolve(document, ref)) is not None}
        self._endless, self._visits = set(targets), 0
        before = -1
        while before != len(self._endless):
            before = len(self._endless)
            for ref, target in targets.items():
                if ref in self._endless and self.ends(target):
                    self._endless.remove(ref)

    def ends(self, schema: Any) -> bool:
        """Whether a value of the schema can end, as far as is known."""
        self._visits += 1
        if self._visits > MAX_VISITS:
            raise InvalidRequestError("the JSON schema has too many references, one into the other")
        if not isinstance(schema, dict):
            return True
        ref = schema.get("$ref")
        if (isinstance(ref, str) and ref in self._endless) or not all(map(self.ends, _list(schema, "allOf"))):
            return False
        for ways in (_list(schema, "anyOf"), _list(schema, "oneOf")):
            if ways and not any(map(self.ends, ways)):
                return False
        match schema.get("type"):
            case "object" | ["object"]:
                return all(self.ends(_property(schema, name)) for name in _list(schema, "required"))
            case "array" | ["array"]:
                return all(map(self.ends, _first_items(schema)))
        return True


def _property(schema: dict[str, Any], name: Any) -> Any:
    """The schema of a property that must be there."""
    named = schema.get("properties")
    if isinstance(named, dict) and isinstance(name, str) and name in named:
        return named[name]
    return True if "patternProperties" in schema else schema.get("additionalProperties", True)


def _first_items(schema: dict[str, Any]) -> Iterator[Any]:
    """The schemas of the items that must be there."""
    least, first = schema.get("minItems", 0), _list(schema, "prefixItems")
    if isinstance(least, int):
        yield from first[:least]
        if least > len(first):
            yield schema.get("items", True)


def _list(schema: dict[str, Any], keyword: str) -> list[Any]:
    value = schema.get(keyword)
    return value if isinstance(value, list) else []


def _references(value: Any) -> Iterator[str]:
    """All of a document's references."""
    if isinstance(value, dict):
        if isinstance(ref := value.get("$ref"), str):
            yield ref
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _references(each)


def _resolve(document: Any, ref: str) -> Any:
    """What a JSON pointer behind `#` (RFC 6901) points to; None for any other reference, and where nothing is."""
    if not ref.startswith("#") or (len(ref) > 1 and ref[1] != "/"):
        return None
    found = document
    for part in ref.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found
