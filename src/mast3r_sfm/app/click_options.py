"""Fields of the option classes as options of click: defaults, limits, choices and help texts stand only there."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import click

from mast3r_sfm.options import Device, SceneGraph

Command = TypeVar("Command", bound=Callable[..., Any])


class _Folder(click.Path):
    """A path that is said: of a variable of the shell that is not set, the current folder would come."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("is empty; name a folder", param, ctx)
        return super().convert(value, param, ctx)


class _Parsed(click.ParamType):
    """A value that its class parses from text; the class's own error says what is allowed."""

    def __init__(self, kind: type[Device] | type[SceneGraph], name: str) -> None:
        self.kind = kind
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.kind.parse(value)


class _ListOf(click.Choice):
    """Some of the choices, separated by commas, as a tuple."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(super(_ListOf, self).convert(part.strip(), param, ctx) for part in parts)


def _joined(ctx: click.Context, param: click.Parameter, value: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """All of an option that was given several times, each once."""
    return tuple(dict.fromkeys(itertools.chain.from_iterable(value)))


def option(owner: type, name: str, *flags: str, **changes: Any) -> Callable[[Command], Command]:
    """The field `name` of `owner` as an option; `changes` replace what click would be told.

    flags  default: the name with dashes; for what is true by default also its --no- form
    """
    one = next(one for one in dataclasses.fields(owner) if one.name == name)
    kind = _without_none(typing.get_type_hints(owner)[name])
    flag = f"--{name.replace('_', '-')}"
    settings: dict[str, Any] = {"help": one.metadata["help"], "default": one.default}
    minimum = one.metadata["minimum"]
    if kind is bool:
        flags = flags or ((f"{flag}/--no-{flag[2:]}",) if one.default else (flag,))
        settings |= {"is_flag": True, "show_default": one.default}
    elif kind in (Device, SceneGraph):
        metavar = "DEVICE" if kind is Device else "GRAPH"
        settings |= {"type": _Parsed(kind, metavar), "metavar": metavar, "default": str(one.default)}
    elif typing.get_origin(kind) is tuple:
        (item, _) = typing.get_args(kind)  # tuple[Format, ...]
        settings |= {"type": _ListOf([str(value) for value in item]), "multiple": True, "callback": _joined}
    elif issubclass(kind, StrEnum):
        settings |= {"type": click.Choice([str(value) for value in kind]), "default": str(one.default)}
    elif kind is Path:
        settings |= {"type": _Folder(path_type=Path), "metavar": "DIR"}
    else:
        settings |= {"type": click.IntRange(min=minimum) if minimum is not None else kind}
    if kind is not bool and one.default not in (None, ()):
        settings["show_default"] = True
    return click.option(*(flags or (flag,)), **(settings | changes))


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options in this order."""

    def decorate(command: Command) -> Command:
        for one in reversed(decorators):
            command = one(command)
        return command

    return decorate


def _without_none(hint: Any) -> Any:
    """int | None -> int"""
    if isinstance(hint, UnionType):
        return next(kind for kind in hint.__args__ if kind is not type(None))
    return hint
