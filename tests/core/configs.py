"""Hypothesis strategies that draw any valid config from its model: fields that come later are drawn too."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from hypothesis import reject
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from consilium.core.config import Config

ConfigT = TypeVar("ConfigT", bound=Config)


def configs(model: type[ConfigT]) -> st.SearchStrategy[ConfigT]:
    """Valid instances of ``model``; a field is its default or anything its type and limits allow."""

    @st.composite
    def draw_config(draw: st.DrawFn) -> ConfigT:
        drawn: dict[str, Any] = {}
        for name, field in model.model_fields.items():
            if field.is_required() or draw(st.integers(0, 3)) == 0:
                drawn[name] = draw(_values(field.annotation, field.metadata))
        try:
            return model(**drawn)
        except ValidationError:  # a section's own check: fields that belong together
            return reject()

    return draw_config()


def _values(annotation: Any, limits: list[Any]) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [
            limit for extra in arguments[1:] for limit in (extra.metadata if isinstance(extra, FieldInfo) else [extra])
        ]
        return _values(arguments[0], [*limits, *inner])
    if origin in (Union, types.UnionType):
        return st.one_of([_values(argument, limits) for argument in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.tuples(*(_values(argument, []) for argument in arguments))
    if origin is list:
        return st.lists(_values(arguments[0], []), min_size=max(_limit(limits, "min_length", 0), 0), max_size=2)
    if origin is dict:
        return st.dictionaries(_values(arguments[0], []), _values(arguments[1], []), max_size=3)
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return configs(annotation)
    return _scalars(annotation, limits)


def _scalars(annotation: Any, limits: list[Any]) -> st.SearchStrategy[Any]:
    low, high = _limit(limits, "ge", _limit(limits, "gt", None)), _limit(limits, "le", _limit(limits, "lt", None))
    if annotation in (None, type(None), Any):  # a leaf of a label tree
        return st.none()
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.integers(low, high).filter(
            lambda x: x not in (_limit(limits, "gt", None), _limit(limits, "lt", None))
        )
    if annotation is float:
        return st.floats(
            low,
            high,
            exclude_min=_limit(limits, "gt", None) is not None,
            exclude_max=_limit(limits, "lt", None) is not None,
            allow_nan=False,
            allow_infinity=False,
        )
    if annotation is str:
        pattern = _limit(limits, "pattern", None)
        if pattern is not None:
            return st.from_regex(pattern, fullmatch=True)
        low_length, high_length = _limit(limits, "min_length", 0), _limit(limits, "max_length", 12)
        return st.text(min_size=low_length, max_size=high_length)
    raise NotImplementedError(f"no strategy for {annotation}")


def _limit(limits: list[Any], name: str, default: Any) -> Any:
    return next((getattr(limit, name) for limit in limits if getattr(limit, name, None) is not None), default)
