"""The documentation names everything that the code has, and its commands and links are real."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from jobs.__main__ import find_jobs
from jobs.command import build_parser, exit_codes
from pipeline.config import EmbedConfig, build, known_keys
from pipeline.export_config import ExportConfig
from pipeline.index.config import IndexConfig
from pipeline.perplexity_config import PerplexityConfig
from pipeline.pretraining.config import PretrainConfig
from pipeline.sources.reasons import Reason
from pipeline.vocabulary_config import VocabularyConfig
from tests.generated_docs import block_names, generated_blocks, rewrite

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
OTHER_CODES = ("duplicate_id", "duplicate_text", "embed_failed", "non_finite_vector")


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def anchors(page: str) -> set[str]:
    """The anchors that a Markdown viewer makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.name)
def test_the_generated_parts_are_up_to_date(path):
    page = path.read_text()
    assert page == rewrite(page), "run `make docs`"


def test_every_generated_part_has_a_place():
    placed = [name for path in ROOT.glob("docs/*.md") for name in block_names(path.read_text())]
    assert sorted(placed) == sorted(generated_blocks())


def test_every_job_flag_and_exit_code_is_in_the_page_of_jobs():
    page = text_of("docs/JOBS.md")
    for job in find_jobs().values():
        assert f"\n## elmo {job.name}\n" in page
        for action in build_parser(job)._actions:
            name = action.option_strings[-1] if action.option_strings else action.dest
            shown = (
                "|".join(action.choices) if not action.option_strings and action.choices else name
            )
            assert f"`{shown.replace('|', chr(92) + '|')}" in page, f"{job.name} {name}"
        for code in {**exit_codes(), **job.exit_codes}:
            assert re.search(rf"\| {code} \||exit code {code}:", page), f"{job.name} {code}"


@pytest.mark.parametrize(
    "model",
    [EmbedConfig, PretrainConfig, VocabularyConfig, PerplexityConfig, ExportConfig, IndexConfig],
)
def test_every_key_is_described_in_the_page_of_configuration(model):
    page = text_of("docs/CONFIGURATION.md")
    for key, description in known_keys(model).items():
        assert description, key
        # A second corpus has the keys of the first.
        assert f"| `{key.replace('held_out.', 'source.')}` |" in page, key


def test_every_reason_for_a_rejected_row_is_explained():
    pages = "\n".join(path.read_text() for path in ROOT.glob("docs/*.md"))
    missing = [code for code in (*map(str, Reason), *OTHER_CODES) if f"`{code}`" not in pages]
    assert missing == []


def test_no_other_reason_is_given_anywhere():
    """The codes outside of `Reason` are those that this test knows."""
    found = set()
    for path in (ROOT / "pipeline").glob("*.py"):
        found |= set(re.findall(r"_reject\(\w+, \w+, \"(\w+)\"", path.read_text()))
        found |= set(re.findall(r"\"(duplicate_(?:id|text))\"", path.read_text()))
    assert found <= {*map(str, Reason), *OTHER_CODES}


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_the_example_configurations_are_valid(path):
    kind = PretrainConfig if path.stem.endswith("pretrain") else EmbedConfig
    build(kind, yaml.safe_load(path.read_text()), path.name)


def test_the_two_commands_of_the_readme_exist_and_ci_runs_the_tests():
    readme, makefile = text_of("README.md"), text_of("Makefile")
    commands = re.findall(r"^make (\w+)$", readme, re.MULTILINE)
    assert {"demo", "test"} <= set(commands)
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    assert set(commands) <= targets
    assert re.search(r"^exec make test$", text_of(".ci/run"), re.MULTILINE)
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def commands_of(page: str) -> list[list[str]]:
    """The `elmo` commands in the code blocks of a page, continued lines joined."""
    blocks = re.findall(r"```\w*\n(.*?)```", page, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    starts = [line.strip().removeprefix("$ ") for line in lines]
    return [shlex.split(line, comments=True) for line in starts if line.startswith("elmo ")]


@pytest.mark.parametrize("path", [*PAGES, ROOT / "Makefile"], ids=lambda path: path.name)
def test_the_commands_that_are_shown_are_accepted(path):
    page = path.read_text()
    if path.name == "Makefile":
        joined = page.replace("\\\n", " ").replace("$(DEMO)", ".demo")
        lines = re.findall(r"^\t\$\(BIN\)/(elmo .*)$", joined, re.MULTILINE)
        commands = [shlex.split(line) for line in lines]
        assert len(commands) == 6
    else:
        commands = commands_of(page)
    for _, name, *words in commands:
        if name == "JOB":
            continue
        arguments = build_parser(find_jobs()[name]).parse_intermixed_args(words)
        config = getattr(arguments, "config", None)
        if config and config.startswith("configs/"):
            assert (ROOT / config).is_file(), config


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    page = path.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page, flags=re.DOTALL)):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(linked.read_text()), f"{path.name}: {target}"


def test_pages_name_only_files_that_exist():
    pattern = re.compile(r"`((?:elmo_model|pipeline|jobs|tests|docs|configs|benchmarks)/[\w./-]+)`")
    for path in PAGES:
        for name in pattern.findall(path.read_text()):
            assert (ROOT / name).exists() or "<" in name, f"{path.name}: {name}"
