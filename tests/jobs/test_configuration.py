"""Configuration files and overrides: what is accepted, and how mistakes are explained."""

from __future__ import annotations

import pytest

from jobs.configuration import MAX_CONFIG_BYTES, load_config, parse_yaml
from pipeline.config import EmbedConfig, SourceConfig
from pipeline.errors import ConfigError

VALID = {"source.path": "corpus", "model.directory": "model", "output.path": "out"}


def overrides(**more: str) -> list[str]:
    return [f"{key}={value}" for key, value in {**VALID, **more}.items()]


def test_overrides_alone_make_a_configuration():
    config = load_config(EmbedConfig, None, [*overrides(), "run.num_actors=3"])
    assert config.source.path == "corpus"
    assert config.run.num_actors == 3


def test_values_are_read_as_yaml():
    words = ["source.text_columns=[title, body]", "source.id_column=", "run.max_rejected_share=0.5"]
    config = load_config(EmbedConfig, None, [*overrides(), *words])
    assert config.source.text_columns == ("title", "body")
    assert config.source.id_column is None
    assert config.run.max_rejected_share == 0.5


def test_a_whole_section_may_be_set():
    config = load_config(EmbedConfig, None, [*overrides(), "vectors={level: token}"])
    assert config.vectors.level == "token"


def test_the_last_override_wins():
    config = load_config(SourceConfig, None, ["path=a", "path=b"])
    assert config.path == "b"


def test_an_override_does_not_drop_its_neighbours(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("source: {path: a, format: csv}\nmodel: {directory: m}\noutput: {path: o}\n")
    config = load_config(EmbedConfig, str(file), ["source.path=b"])
    assert (config.source.path, config.source.format) == ("b", "csv")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sorce.path=x"], "--set sorce.path: unknown key, did you mean source.path?"),
        (["source.pth=x"], "did you mean source.path? known: source.path, source.format"),
        (["source"], "--set: expected key=value"),
        (["=x"], "expected key=value"),
        (["source.path=[1"], "the value is line 1, column 3: not valid YAML"),
        (["source=3", "source.path=x"], "gives source a value of type int, expected a mapping"),
        (["source.format=xml"], "source.format"),
    ],
)
def test_a_wrong_override_is_explained(words, message):
    with pytest.raises(ConfigError) as error:
        load_config(EmbedConfig, None, words)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"source:\n  path: [a\n", "line 3, column 1: not valid YAML"),
        (b"- a\n- b\n", "expected a mapping"),
        (b"path: a\nformat: csv\npath: b\n", "line 3, column 1: the key 'path' stands twice"),
        (b"path: \xff\n", "byte 6 is not UTF-8"),
        (b"path: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_explained_with_its_place(content, message):
    with pytest.raises(ConfigError) as error:
        parse_yaml(content, "c.yaml")
    assert str(error.value).startswith("c.yaml: ")
    assert message in str(error.value)


def test_anchors_and_merge_keys_work():
    content = b"base: &b {x: 1}\na: {<<: *b, y: 2}\nc: {<<: *b}\n"
    assert parse_yaml(content, "c.yaml")["a"] == {"x": 1, "y": 2}


def test_an_empty_file_is_an_empty_mapping():
    assert parse_yaml(b"# nothing\n", "c.yaml") == {}


def test_missing_and_huge_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_config(SourceConfig, str(tmp_path / "none.yaml"), [])
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(SourceConfig, str(tmp_path), [])
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load_config(SourceConfig, str(huge), [])


def test_an_unknown_key_of_a_file_lists_the_known_ones(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("path: a\ntext_column: body\n")
    with pytest.raises(ConfigError, match=r"text_column is not a known key; known here: path,"):
        load_config(SourceConfig, str(file), [])


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS + "source: {path: *a8}\n", "more than 10000 values once its aliases are followed"),
        ("a: &a {b: *a}\n", "an alias stands inside of what it stands for"),
        ("[" * 50_000, "nested too deeply"),
        ("{a: " * 20_000, "nested too deeply"),
        ("a: " + "9" * 10_000 + "\n", "numbers have few digits"),
        ("? [a, b]\n: c\n", "not valid YAML"),
        ("a: 2001-99-99\n", "cannot be read"),
    ],
)
def test_yaml_made_to_exhaust_its_reader_is_refused(text, message):
    with pytest.raises(ConfigError, match=f"c.yaml: .*{message}"):
        parse_yaml(text.encode(), "c.yaml")
    value = text.removeprefix("a: ").strip()
    with pytest.raises(ConfigError, match="--set run: "):
        load_config(EmbedConfig, None, [f"run={{x: {value}}}"])


def test_anchors_and_merged_sections_are_read():
    text = b"base: &base {format: arrow}\noutput:\n  <<: *base\n  path: x\n"
    assert parse_yaml(text, "c.yaml")["output"] == {"format": "arrow", "path": "x"}
