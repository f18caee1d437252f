"""The parts of docs/ that are written by the code: flags, exit codes, configuration keys.

`make docs` rewrites them; `test_docs.py` fails where a page is not up to date.
"""

from __future__ import annotations

import argparse
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jobs.__main__ import find_jobs
from jobs.command import build_parser, exit_codes
from pipeline.config import EmbedConfig, SourceConfig
from pipeline.export_config import ExportConfig
from pipeline.index.config import IndexConfig
from pipeline.perplexity_config import PerplexityConfig
from pipeline.pretraining.config import PretrainConfig
from pipeline.vocabulary_config import VocabularyConfig

DOCS = Path(__file__).parents[1] / "docs"
_BLOCK = re.compile(r"(<!-- generated: ([\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_COMMON_FLAGS = ("--help", "--json", "--result", "--quiet", "--debug", "--config", "--set")


def generated_blocks() -> dict[str, Callable[[], str]]:
    """The blocks by name; each returns Markdown that ends in a line break."""
    blocks: dict[str, Callable[[], str]] = {
        "jobs": jobs_table,
        "common flags": common_flags_table,
        "exit codes": exit_codes_table,
        "keys embed": lambda: keys_table(EmbedConfig),
        "keys pretrain": lambda: keys_table(PretrainConfig, without=("source", "text")),
        "keys vocabulary": lambda: keys_table(VocabularyConfig, without=("source", "text")),
        "keys perplexity": lambda: keys_table(PerplexityConfig, without=("source", "text")),
        "keys export": lambda: keys_table(ExportConfig),
        "keys index": lambda: keys_table(IndexConfig),
    }
    for name in find_jobs():
        blocks[f"job {name}"] = lambda name=name: job_section(name)
    return blocks


def rewrite(page: str) -> str:
    """Return a page with its generated blocks as they should be."""
    blocks = generated_blocks()
    return _BLOCK.sub(lambda match: match[1] + blocks[match[2]]() + match[3], page)


def block_names(page: str) -> list[str]:
    """The names of the generated blocks of a page."""
    return [match[1] for match in _BLOCK.findall(page)]


def jobs_table() -> str:
    rows = [(f"[`elmo {job.name}`](#elmo-{job.name})", job.summary) for job in find_jobs().values()]
    return table(("job", "what it does"), rows)


def common_flags_table() -> str:
    """The flags that are the same in every job that has them."""
    actions = build_parser(find_jobs()["embed"])._actions
    names = (*_COMMON_FLAGS, "--dry-run")
    rows = [flag_row(a) for a in actions if a.option_strings and a.option_strings[-1] in names]
    return table(("flag", "meaning"), rows)


def exit_codes_table() -> str:
    return table(("code", "meaning"), [(str(code), text) for code, text in exit_codes().items()])


def job_section(name: str) -> str:
    """Flags of one job that others lack, its own exit codes, and its examples."""
    job = find_jobs()[name]
    actions = [
        action
        for action in build_parser(job)._actions
        if not action.option_strings
        or action.option_strings[-1] not in (*_COMMON_FLAGS, "--dry-run")
    ]
    takes = ["--config", "--set"] if job.takes_config else []
    takes += ["--dry-run"] if job.has_dry_run else []
    parts = []
    if actions:
        parts.append(table(("flag", "meaning"), [flag_row(action) for action in actions]))
    if takes:
        parts.append(f"Takes {', '.join(f'`{flag}`' for flag in takes)} as well.\n")
    if job.exit_codes:
        codes = [f"{code}: {text}" for code, text in job.exit_codes.items()]
        parts.append(f"Its own exit code {'; '.join(codes)}.\n")
    examples = "\n".join(f"elmo {name} {example}" for example in job.examples)
    parts.append(f"```\n{examples}\n```\n")
    return "\n".join(parts)


def flag_row(action: argparse.Action) -> tuple[str, str]:
    name = action.option_strings[-1] if action.option_strings else action.dest
    value = action.metavar or (action.dest.upper() if action.option_strings else "")
    if action.choices:
        value = "|".join(map(str, action.choices))
        name = name if action.option_strings else value
    takes_value = bool(action.option_strings) and action.nargs != 0
    text = (action.help or "") % {"default": action.default, "prog": "elmo"}
    return f"`{name}{f' {value}' if takes_value else ''}`", text


def keys_table(model: type[BaseModel], without: tuple[str, ...] = ()) -> str:
    rows = [row for row in key_rows(model, "") if row[0].strip("`").split(".")[0] not in without]
    return table(("key", "values", "default", "meaning"), rows)


def key_rows(model: type[BaseModel], prefix: str) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            rows += key_rows(annotation, f"{prefix}{name}.")
        else:
            meaning = (field.description or "").replace("<", "&lt;")
            rows.append((f"`{prefix}{name}`", values_of(annotation), default_of(field), meaning))
    return rows


def values_of(annotation: Any) -> str:
    """Name the values that a key takes, in YAML's words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else values_of(a) for a in inner)
    if origin is tuple:
        pair = inner[-1] is not Ellipsis
        return f"[{', '.join(map(values_of, inner))}]" if pair else f"list of {values_of(inner[0])}"
    if annotation is SourceConfig:
        return "the keys of `source`"
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return names[annotation]


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"`{[list(v) if isinstance(v, tuple) else v for v in value]}`".replace("'", "")
    return f"`{value!r}`".replace("'", '"') if isinstance(value, str) else str(value)


def table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [headers, tuple("---" for _ in headers), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def main() -> None:
    """Rewrite all pages of docs/."""
    for path in sorted(DOCS.glob("*.md")):
        path.write_text(rewrite(path.read_text()))


if __name__ == "__main__":
    main()
