"""Dataclasses from untrusted JSON, such as a bundle's config.json.

Unknown fields, wrong types and sizes beyond the bounds raise a `ModelError` that names the field, before anything is
allocated.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from audiolm_cli.errors import ModelError


def bounded(low: float, high: float, sizes: tuple[int, int] = (1, 16), **kwargs: Any) -> Any:
    """A dataclass field whose value must lie in [low, high]; of a tuple each value, and its length in `sizes`."""
    return dataclasses.field(metadata={"bounds": (low, high), "sizes": sizes}, **kwargs)


def to_json(config: Any) -> Any:
    return dataclasses.asdict(config)


def from_json(kind: Any, value: Any, where: str = "") -> Any:
    """Builds the dataclass `kind` from parsed JSON, checking names, types and bounds.

    Raises ModelError naming the field, such as `config.json: coarse.width must be between 8 and 16384`.
    """
    if not isinstance(value, dict):
        raise ModelError(f"config.json: {where or 'the whole'} must be an object")
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    known = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := value.keys() - known.keys():
        raise ModelError(f"config.json: {prefix}{sorted(unknown)[0]} is not a known field")
    arguments = {}
    for name, spec in known.items():
        if name in value:
            arguments[name] = checked(hints[name], value[name], prefix + name, spec.metadata)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ModelError(f"config.json: {prefix}{name} is missing")
    result = kind(**arguments)
    if hasattr(result, "check"):
        result.check()
    return result


def checked(hint: Any, value: Any, where: str, limits: Mapping[str, Any]) -> Any:
    """A value of the type `hint` from parsed JSON, within the `limits` of a `bounded` field; raises ModelError."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        if value is None and type(None) in options:
            return None
        kinds = [option for option in options if option is not type(None)]
        if len(kinds) == 1:
            return checked(kinds[0], value, where, limits)
        for kind in kinds:  # distinguished by their field `kind`
            if isinstance(value, dict) and value.get("kind") == kind.kind:
                return from_json(kind, value, where)
        raise ModelError(f"config.json: {where}.kind must be one of {', '.join(k.kind for k in kinds)}")
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)
    if origin is Literal:
        if value not in options:
            raise ModelError(f"config.json: {where} must be one of {', '.join(map(str, options))}")
        return value
    if origin is tuple:
        least, most = limits.get("sizes", (1, 16))
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise ModelError(f"config.json: {where} must be a list of {least} to {most}")
        return tuple(checked(options[0], item, where, limits) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ModelError(f"config.json: {where} must be an object")
        return value
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ModelError(f"config.json: {where} must be {hint.__name__}")
    bounds = limits.get("bounds")
    if bounds and not bounds[0] <= value <= bounds[1]:
        raise ModelError(f"config.json: {where} must be between {bounds[0]:g} and {bounds[1]:g}")
    return value
