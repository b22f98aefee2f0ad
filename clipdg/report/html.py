"""Pages: one Jinja environment, one layout with the style and the script inside it. Nothing is asked from outside."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any


def render(template: str, context: dict[str, Any], **helpers: Callable[..., Any] | str) -> str:
    """The page of ``template`` (a file beside this one); a name that the context lacks is an error, not a blank."""
    text: str = _environment().get_template(template, globals=helpers).render(**context)
    return text


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("clipdg.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["read"] = _asset
    return environment


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
