"""YAML by the core schema of YAML 1.2: how jobs, recipes and overrides are read and written.

PyYAML reads by YAML 1.1, in which `yes` is true, 010 is 8 and 1:30 is 90, and 1e-3 is a word. Here a number looks as in
any other language, and nothing but true and false is a truth value. Anchors and merge keys (`<<`) are read as ever.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

WRITTEN_BY_1_2 = "%YAML 1.2\n---\n"
"""Head of a job.yaml. One without it was written before, by YAML 1.1's rules for which words need quotes."""

_MERGE = "tag:yaml.org,2002:merge"
_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
"""Tag -> what a plain scalar of it looks like (as a whole), and how it may begin; the first that fits counts."""


class CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the tags of the core schema; a key that a mapping gives twice is an error."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own attribute, here without YAML 1.1's

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """The mapping that begins here. Looked at before merge keys are followed, whose fields may be given again."""
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="the name of a field is a word", problem_mark=key.start_mark)
            line = key.start_mark.line + 1
            field = "<<" if key.tag == _MERGE else self.construct_object(key)
            if field in lines:
                before = f"here and in line {lines[field]}" if lines[field] != line else "twice"
                raise yaml.MarkedYAMLError(problem=f"`{key.value}` is given {before}", problem_mark=key.start_mark)
            lines[field] = line
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put the fields of merged mappings before a mapping's own, which count, and of two merged ones the first's.

        PyYAML 6.0.4 takes the last one's, and of fields of one letter a merged one before the mapping's own.
        """
        own = [(key, value) for key, value in node.value if key.tag != _MERGE]
        fields: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for value in (value for key, value in node.value if key.tag == _MERGE):
            for source in reversed(value.value if isinstance(value, yaml.SequenceNode) else [value]):
                if not isinstance(source, yaml.MappingNode):
                    raise yaml.MarkedYAMLError(problem="`<<` merges mappings alone", problem_mark=value.start_mark)
                self.flatten_mapping(source)
                fields |= {key.value: (key, item) for key, item in source.value}
        node.value = list((fields | {key.value: (key, value) for key, value in own}).values())


class CoreDumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes words that YAML 1.1 or the core schema would read as something else."""


for _tag, (_pattern, _first) in _CORE.items():
    _whole = re.compile(f"(?:{_pattern})$")
    CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, _first)
    CoreDumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, _first)


def _number(loader: CoreLoader, node: yaml.ScalarNode) -> int | float:
    text = loader.construct_scalar(node)
    try:
        if node.tag.endswith("int"):
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:  # after a tag (!!int), or of thousands of digits
        raise yaml.MarkedYAMLError(problem=f"{text:.20} is no number", problem_mark=node.start_mark) from None


CoreLoader.add_constructor("tag:yaml.org,2002:int", _number)
CoreLoader.add_constructor("tag:yaml.org,2002:float", _number)


def load_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ValueError, which says in which line what is wrong, if it is none."""
    return _load(text, CoreLoader)


def load_run_yaml(text: str) -> Any:
    """The value of a run directory's job.yaml, also of one that an earlier version wrote. Raises as `load_yaml`."""
    return _load(text, CoreLoader if text.startswith(WRITTEN_BY_1_2) else yaml.SafeLoader)


def dump_yaml(value: Any, **layout: Any) -> str:
    """The YAML text of plain values, fields in their order, which YAML 1.1 and 1.2 read alike.

    layout: options of PyYAML's `dump`.
    """
    return yaml.dump(value, Dumper=CoreDumper, sort_keys=False, **layout)


def _load(text: str, loader: type[yaml.SafeLoader]) -> Any:
    try:
        return yaml.load(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{' '.join(filter(None, (error.context, error.problem)))}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: holds the character #x{error.character:04x}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
