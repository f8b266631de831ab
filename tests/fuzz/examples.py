"""Make an example of any struct from its types: seeds for readers whose valid inputs are encoded structs."""

from __future__ import annotations

from typing import Any

import msgspec
from expertflow.configs.schema import Config
from msgspec import inspect

_PLAIN: dict[type[inspect.Type], Any] = {
    inspect.NoneType: None,
    inspect.BoolType: True,
    inspect.FloatType: 0.5,
    inspect.StrType: "text",
    inspect.BytesType: b"\0\1",
    inspect.AnyType: {"key": [1, "two", None]},
    inspect.RawType: {"raw": 1},
}


def examples_of(union: Any) -> list[Any]:
    """Return an example of each member of a union of structs, with every field given."""
    kind = inspect.type_info(union)
    members = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return [_example(member) for member in members]


def packed_examples(union: Any) -> list[bytes]:
    """Return the examples in MessagePack."""
    return [msgspec.msgpack.encode(each) for each in examples_of(union)]


def _example(kind: inspect.Type) -> Any:
    match kind:
        case inspect.StructType(cls=cls) if cls is Config:  # its fields depend on each other
            return msgspec.to_builtins(Config())
        case inspect.StructType(cls=cls, fields=fields):
            return _filled(cls, fields)
        case inspect.IntType(ge=low, multiple_of=step):
            return max(low or 1, step or 1)
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.UnionType(types=types):
            return _example(next((each for each in types if not isinstance(each, inspect.NoneType)), types[0]))
        case inspect.ListType(item_type=item) | inspect.CollectionType(item_type=item):
            return [_example(item)]
        case inspect.VarTupleType(item_type=item):
            return (_example(item),)
        case inspect.TupleType(item_types=items):
            return tuple(_example(item) for item in items)
        case inspect.DictType(key_type=key, value_type=value):
            return {_example(key): _example(value)}
        case _:
            return _PLAIN[type(kind)]


def _filled(cls: Any, fields: tuple[inspect.Field, ...]) -> Any:
    """Return plain values of a struct, since a checked constructor might refuse the example."""
    config = cls.__struct_config__
    values = {field.encode_name: _example(field.type) for field in fields}
    if config.array_like:
        return [*([config.tag] if config.tag is not None else []), *values.values()]
    return {config.tag_field: config.tag, **values} if config.tag is not None else values
