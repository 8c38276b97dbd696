"""The part that a field is declared with, and the settings that are left without defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from moe_dist.settings.schema import Part, Strict, settings_of


class Inner(Strict):
    """A nested configuration with a field of each kind."""

    rate: float = 0.1
    keep: Annotated[int, Part.EVALUATION] = 2
    threads: Annotated[int, Field(ge=1), Part.NONE] = 1


class Outer(Strict):
    """Nested ones by themselves, in a tuple, by name, and one that is declared as a whole."""

    name: str
    inner: Inner = Inner(rate=0.5)
    several: tuple[Inner, ...] = ()
    named: dict[str, Inner] = Field(default={})
    looks: Annotated[Inner, Part.EVALUATION] = Inner()
    where: Annotated[Path | None, Part.NONE] = None


def test_defaults_are_left_out_and_what_has_none_stays() -> None:
    assert settings_of(Outer(name="a")) == {"name": "a"}


def test_only_what_differs_from_its_own_default_is_told() -> None:
    """inner's default is 0.5: its class's default, 0.1, is a change, and 0.5 written out is none."""
    assert settings_of(Outer(name="a", inner=Inner())) == {"name": "a", "inner": {}}
    assert settings_of(Outer(name="a", inner=Inner(rate=0.5))) == {"name": "a"}
    assert settings_of(Outer(name="a", inner=Inner(rate=0.7))) == {"name": "a", "inner": {"rate": 0.7}}


def test_a_field_counts_for_its_own_part_alone() -> None:
    config = Outer(name="a", inner=Inner(rate=0.5, keep=3, threads=4), where=Path("x"), looks=Inner(rate=0.2))
    assert settings_of(config) == {"name": "a"}
    looks = {"rate": 0.2, "keep": 2, "threads": 1}
    assert settings_of(config, Part.EVALUATION) == {"inner": {"keep": 3}, "looks": looks}
    assert settings_of(config, Part.NONE) == {"inner": {"threads": 4}, "where": "x"}


def test_configurations_in_lists_and_by_name_are_looked_into() -> None:
    config = Outer(name="a", several=(Inner(threads=2), Inner(rate=0.3)), named={"b": Inner(keep=9)})
    assert settings_of(config) == {"name": "a", "several": [{}, {"rate": 0.3}], "named": {"b": {}}}
    assert settings_of(config, Part.EVALUATION) == {"named": {"b": {"keep": 9}}}


def test_a_new_field_at_its_default_changes_no_settings() -> None:
    class Later(Inner):
        """The same, of a later version."""

        momentum: float = 0.9

    assert settings_of(Later(rate=0.3)) == settings_of(Inner(rate=0.3))
    assert settings_of(Later(rate=0.3, momentum=0.8)) != settings_of(Inner(rate=0.3))
