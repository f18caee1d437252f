"""`elmo perplexity` from the command line, against the original's evaluation and the reference."""

import json
import lzma
import shutil

import pytest
import torch
import yaml

from elmo_model.directory import load_directory, save_directory
from elmo_model.lm_batches import WordTable, packed_batches
from elmo_model.losses import Softmax
from elmo_model.options import ElmoOptions
from elmo_model.softmax_file import read_softmax, read_softmax_weights, write_softmax
from elmo_model.vocabulary import Vocabulary
from elmo_model.weights import build, read_weights
from jobs.command import main
from jobs.perplexity import JOB
from jobs.pretrain import JOB as PRETRAIN
from pipeline.config import SourceConfig, TextConfig
from pipeline.config import build as build_config
from pipeline.errors import ConfigError
from pipeline.perplexity import MAX_ROWS, PREDICTIONS_PER_ROW, choose_rows
from pipeline.perplexity_config import PerplexityConfig
from pipeline.sentence_stream import SentenceStream
from pipeline.sources.discover import discover
from tests.elmo_model.plain_perplexity import plain_perplexity
from tests.pipeline.toy_corpus import toy_config, write_toy_corpus

VARIANTS = [
    "A_char_relu_fullsoftmax",
    "B_char_tanh_clips_active",
    "C_token_share_embedding",
    "D_char_sampled_softmax",
    "E_token_sampled_softmax",
    "F_unidirectional_token",
]
# The original reports four decimals' worth of agreement in float32.
GOLDEN_TOLERANCE = 5e-5
# Fast kernels and a softmax in blocks add in another order than the modules.
TOLERANCE = 1e-5


def flags(**values):
    """`--set` flags; `__` stands for the dot."""
    pairs = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    return [word for pair in pairs for word in ("--set", pair)]


def run(capsys, *words):
    """The exit code, the status, and what was logged."""
    code = main(JOB, [*words, "--json"])
    output = capsys.readouterr()
    return code, json.loads(output.out), output.err


def result(capsys, *words):
    code, status, log = run(capsys, "--quiet", *words)
    assert code == 0, log
    return status["result"]


@pytest.fixture(scope="module")
def golden(shared):
    """Flags of a variant's files and of the text that the original was measured on."""

    def of(variant, **more):
        folder = shared / "golden/tf-training" / variant
        return flags(
            source__path=shared / "golden/bilm-tf-train/data.txt",
            text__tokenizer="pretokenized",
            model__options_file=folder / "options.json",
            model__weights_file=folder / "dump_weights_of_init.hdf5",
            model__vocabulary_file=shared / "golden/bilm-tf-train/vocab.txt",
            model__softmax_file=folder / "init.hdf5",
            **more,
        )

    return of


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small model that `elmo pretrain` wrote, and the text that it learned from."""
    directory = tmp_path_factory.mktemp("perplexity")
    source = write_toy_corpus(directory / "corpus.jsonl")
    config = directory / "pretrain.yaml"
    config.write_text(yaml.safe_dump(toy_config(source, directory / "model")))
    assert main(PRETRAIN, ["--config", str(config), "--quiet"]) == 0
    return directory


def trained_flags(trained, **more):
    return flags(
        source__path=trained / "corpus.jsonl",
        source__id_column="id",
        model__directory=trained / "model",
        **more,
    )


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_perplexity_equals_the_originals(variant, batch_size, golden, shared, capsys):
    found = result(capsys, *golden(variant, evaluation__batch_size=batch_size))
    path = shared / "golden/tf-training" / variant / "expected.json"
    wanted = json.loads(path.read_text())[f"test_perplexity_bs{batch_size}"]
    assert found["perplexity"]["mean"] == pytest.approx(wanted, abs=GOLDEN_TOLERANCE)
    assert (found["perplexity"]["backward"] is None) == variant.startswith("F")
    # 134 tokens and 5 sentence marks.
    assert found["predictions"] + found["dropped"] == 139
    assert found["dropped"] == (0 if batch_size == 1 else 29)


@pytest.mark.parametrize("variant", ["A_char_relu_fullsoftmax", "C_token_share_embedding"])
def test_unrolled_steps_of_training_drop_more_and_change_little_else(variant, golden, capsys):
    whole = result(capsys, *golden(variant, evaluation__batch_size=1))
    longer = result(capsys, *golden(variant, evaluation__batch_size=1, evaluation__unroll_steps=7))
    assert (whole["predictions"], longer["predictions"]) == (139, 133)
    assert longer["dropped"] == 6
    assert longer["perplexity"]["mean"] == pytest.approx(whole["perplexity"]["mean"], rel=0.02)


def test_the_softmax_is_found_in_the_weight_file_that_holds_it(golden, shared, capsys):
    folder = shared / "golden/tf-training/A_char_relu_fullsoftmax"
    words = golden("A_char_relu_fullsoftmax", evaluation__batch_size=1)
    named = result(capsys, *words)
    words += flags(model__weights_file=folder / "init.hdf5", model__softmax_file="null")
    assert result(capsys, *words)["perplexity"] == named["perplexity"]


@pytest.mark.parametrize("variant", ["C_token_share_embedding", "E_token_sampled_softmax"])
def test_a_directory_with_word_input_is_measured_as_the_files_are(
    variant, golden, shared, tmp_path, capsys
):
    """Also one whose softmax is its word table."""
    folder = shared / "golden/tf-training" / variant
    options = ElmoOptions.read(folder / "options.json")
    state = read_weights(folder / "init.hdf5", options)
    vocabulary = Vocabulary.read(shared / "golden/bilm-tf-train/vocab.txt")
    shared_table = state["token_embedding.embedding"] if variant.startswith("C") else None
    weights = read_softmax_weights(folder / "init.hdf5", 32, 8, shared_table)
    softmax = Softmax(32, 8, torch.nn.Parameter(weights.weight_VP))
    with torch.no_grad():
        softmax.bias.copy_(weights.bias_V)
    save_directory(tmp_path / "model", options, state, vocabulary.words)
    write_softmax(tmp_path / "model/softmax.safetensors", softmax)
    words = golden(variant, evaluation__batch_size=2)
    files = ("options_file", "weights_file", "vocabulary_file", "softmax_file")
    unset = flags(**{f"model__{name}": "null" for name in files})
    found = result(capsys, *words, *unset, *flags(model__directory=tmp_path / "model"))
    assert found["perplexity"] == result(capsys, *words)["perplexity"]


def reference(trained, batch_size, num_sentences=None):
    """Perplexity by the modules, of the text that the job reads."""
    files = load_directory(trained / "model")
    vocabulary = Vocabulary.read(trained / "model/vocabulary.txt")
    width = files.options.lstm.projection_dim
    softmax = read_softmax(trained / "model/softmax.safetensors", len(vocabulary), width)
    table = WordTable(vocabulary, 12)
    source = SourceConfig(path=str(trained / "corpus.jsonl"), id_column="id")
    sequences = list(SentenceStream(discover(source), table, None).sequences(source, TextConfig()))
    batches = packed_batches(sequences[:num_sentences], table, batch_size, 1)
    return plain_perplexity(build(files.options, files.state), softmax, batches)


@pytest.mark.parametrize("batch_size", [16, 256])
def test_a_pretrained_directory_is_measured_as_by_the_reference(trained, batch_size, capsys):
    found = result(capsys, *trained_flags(trained, evaluation__batch_size=batch_size))
    wanted = reference(trained, batch_size)
    assert found["predictions"] == wanted.num_predictions
    for key in ("forward", "backward", "mean"):
        assert found["perplexity"][key] == pytest.approx(getattr(wanted, key), rel=TOLERANCE)


def test_by_default_little_of_a_small_text_is_dropped(trained, capsys):
    found = result(capsys, *trained_flags(trained))
    total = found["tokens"] + found["sentences"]
    assert found["predictions"] + found["dropped"] == total
    assert found["batch_size"] == total // 2000
    assert found["dropped"] < 0.01 * total
    assert found["documents"] == 300
    assert found["rejected"] == 0
    assert found["tokens_per_s"] > 0


def test_from_a_zero_state_nothing_is_dropped_and_order_does_not_matter(trained, capsys, tmp_path):
    found = result(capsys, *trained_flags(trained, evaluation__state="zero"))
    assert found["dropped"] == 0
    assert found["batch_size"] is None
    assert found["predictions"] == found["tokens"] + found["sentences"]
    lines = (trained / "corpus.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "reversed.jsonl").write_text("".join(reversed(lines)))
    words = trained_flags(trained, evaluation__state="zero")
    other = result(capsys, *words, *flags(source__path=tmp_path / "reversed.jsonl"))
    assert other["perplexity"]["mean"] == pytest.approx(found["perplexity"]["mean"], rel=TOLERANCE)


def test_unknown_targets_are_counted(trained, capsys, tmp_path):
    (tmp_path / "text.txt").write_text("The cat sees zyzzyva\nThe dog hears\n")
    words = trained_flags(trained, evaluation__state="zero")
    words += flags(source__path=tmp_path / "text.txt", source__id_column="null")
    # Of 7 words and a mark for each of 2 sentences, in both directions.
    assert result(capsys, *words)["unknown_share"] == pytest.approx(1 / 9)


def test_reading_ends_with_the_sentence_that_reaches_max_tokens(trained, capsys):
    found = result(
        capsys,
        *trained_flags(trained, evaluation__max_tokens=100, evaluation__batch_size=1),
    )
    wanted = reference(trained, 1, found["sentences"])
    assert 100 <= found["tokens"] < 110
    # Four sentences of nine or ten tokens and one of five make a document.
    assert found["documents"] == 3
    assert found["predictions"] == found["tokens"] + found["sentences"] == wanted.num_predictions
    assert found["perplexity"]["mean"] == pytest.approx(wanted.mean, rel=TOLERANCE)


def test_tokens_beyond_the_limit_of_a_document_are_counted_and_said(trained, capsys):
    words = trained_flags(trained, text__max_document_tokens=40)
    found = result(capsys, *words)
    whole = result(capsys, *trained_flags(trained))
    assert found["tokens"] == 300 * 40
    assert found["tokens"] + found["cut_tokens"] == whole["tokens"]
    assert whole["cut_tokens"] == 0
    assert main(JOB, [*words, "--quiet"]) == 0
    assert "tokens were not read" in capsys.readouterr().out


def test_the_number_of_rows_follows_from_the_beginning_of_the_text():
    taken = []

    def stream(num_sentences, length):
        for number in range(num_sentences):
            taken.append(number)
            yield [0] * (length + 1)

    def rows(num_sentences, length):
        taken.clear()
        found, sequences = choose_rows(None, stream(num_sentences, length))
        looked_at = len(taken)
        assert len(list(sequences)) == num_sentences
        return found, looked_at

    assert rows(0, 0) == (1, 0)
    assert rows(10, 20) == (1, 10)
    assert rows(1000, 20) == (10, 1000)
    # A row needs a sentence to begin with.
    assert rows(2, 100_000) == (2, 2)
    enough = MAX_ROWS * PREDICTIONS_PER_ROW // 100
    assert rows(2 * enough, 100) == (MAX_ROWS, enough)


def test_the_text_result_is_for_people(trained, capsys):
    assert main(JOB, [*trained_flags(trained), "--quiet"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("perplexity forward ")
    assert "rows side by side" in output.out
    assert "of the targets are <UNK>" in output.out
    assert output.err == ""


def test_progress_shows_the_perplexity_so_far(trained, capsys):
    assert main(JOB, trained_flags(trained)) == 0
    assert "300 documents" in (log := capsys.readouterr().err)
    assert "mean " in log


def test_a_dry_run_checks_the_model_and_reads_no_text(trained, capsys):
    assert main(JOB, [*trained_flags(trained), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Would measure" in said
    assert "1 files" in said


def test_a_directory_without_softmax_says_which_file_and_where_to_get_it(trained, capsys, tmp_path):
    shutil.copytree(trained / "model", tmp_path / "model")
    (tmp_path / "model/softmax.safetensors").unlink()
    words = [*trained_flags(trained), *flags(model__directory=tmp_path / "model")]
    code, status, _ = run(capsys, *words)
    assert code == 2
    assert f"{tmp_path / 'model'}: softmax.safetensors is missing" in status["error"]
    assert "`elmo pretrain` writes it" in status["error"]
    assert "model.softmax_file" in status["error"]


def test_released_weights_without_softmax_say_where_to_get_it(golden, capsys):
    words = [*golden("A_char_relu_fullsoftmax"), *flags(model__softmax_file="null")]
    code, status, _ = run(capsys, *words)
    assert code == 2
    assert "lm/softmax/W" in status["error"]


def test_a_model_without_vocabulary_says_what_to_name(golden, trained, capsys, tmp_path):
    words = [*golden("A_char_relu_fullsoftmax"), *flags(model__vocabulary_file="null")]
    code, status, _ = run(capsys, *words)
    assert code == 2
    assert "model.vocabulary_file is not given" in status["error"]
    shutil.copytree(trained / "model", tmp_path / "model")
    (tmp_path / "model/vocabulary.txt").unlink()
    words = [*trained_flags(trained), *flags(model__directory=tmp_path / "model")]
    code, status, _ = run(capsys, *words)
    assert code == 2
    assert "vocabulary.txt is missing" in status["error"]


def test_the_softmax_of_another_vocabulary_is_refused(golden, shared, capsys, tmp_path):
    vocabulary = shared / "golden/bilm-tf-train/vocab.txt"
    (tmp_path / "vocab.txt").write_text(vocabulary.read_text().rstrip("\n") + "\nanother\n")
    words = golden("A_char_relu_fullsoftmax")
    code, status, _ = run(capsys, *words, *flags(model__vocabulary_file=tmp_path / "vocab.txt"))
    assert code == 2
    assert "(32, 8)" in status["error"]
    assert "(33, 8)" in status["error"]
    assert "different models" in status["error"]


def test_a_text_that_fills_no_batch_says_how_long_it_is(golden, capsys):
    words = golden("A_char_relu_fullsoftmax", evaluation__batch_size=6)
    code, status, _ = run(capsys, *words)
    assert code == 2
    assert "does not fill one batch of 6 rows" in status["error"]
    assert "139 predictions in 5 sentences" in status["error"]


def test_an_empty_corpus_is_an_error_of_the_source(trained, capsys, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    words = [*trained_flags(trained), *flags(source__id_column="null")]
    for path in (tmp_path / "empty.txt", tmp_path / "missing.txt"):
        code, status, _ = run(capsys, *words, *flags(source__path=path))
        assert code == 3
        assert path.name in status["error"]


def test_rejected_rows_are_told_with_their_place_and_reason(trained, capsys, tmp_path):
    corpus = tmp_path / "c.jsonl"
    lines = (trained / "corpus.jsonl").read_text().splitlines(keepends=True)[:20]
    corpus.write_text("".join([*lines, "{\n", '{"id": "x", "text": ""}\n']))
    code, status, log = run(capsys, *trained_flags(trained), *flags(source__path=corpus))
    assert code == 0
    assert status["result"]["rejected"] == 2
    assert status["result"]["rejected_by_code"] == {"bad_json": 1, "empty_text": 1}
    assert status["result"]["documents"] == 20
    assert "2 of 22 rows were rejected: 1 bad_json, 1 empty_text" in log
    assert f"bad_json: {corpus}, offset {sum(map(len, lines))}: " in log
    corpus.write_text('{"id": "x", "text": ""}\n' * 2)
    code, status, _ = run(capsys, *trained_flags(trained), *flags(source__path=corpus))
    assert code == 3
    assert "all 2 rows were rejected (2 empty_text), the first as" in status["error"]


def test_a_softmax_that_overflows_is_an_error_not_a_figure(golden, shared, capsys, tmp_path):
    huge = Softmax(32, 8)
    with torch.no_grad():
        huge.weight.fill_(3e38)
        huge.weight[5:] = -3e38
    write_softmax(tmp_path / "softmax.safetensors", huge)
    words = golden("A_char_relu_fullsoftmax", evaluation__batch_size=1)
    words += flags(model__softmax_file=tmp_path / "softmax.safetensors")
    code, status, _ = run(capsys, *words)
    assert code == 2
    assert "damaged or diverged" in status["error"]


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"directory": None}, "give either model.directory or both"),
        ("model", {"vocabulary_file": "v.txt"}, "name the directory's files one by one"),
        ("model", {"layers": "top"}, "model.layers is not a known key; known here: directory"),
        ("evaluation", {"state": "zero", "batch_size": 4}, "evaluation.batch_size goes with"),
        ("evaluation", {"batch_size": 0}, "evaluation.batch_size"),
    ],
)
def test_a_wrong_value_names_its_key(section, values, message):
    config = {"source": {"path": "text"}, "model": {"directory": "model"}, section: values}
    config["model"] = {"directory": "model", **(values if section == "model" else {})}
    with pytest.raises(ConfigError, match=message):
        build_config(PerplexityConfig, config, "test")


def test_a_toy_model_knows_few_words_of_real_text_and_most_of_its_own(
    trained, shared, capsys, tmp_path
):
    with lzma.open(shared / "data/wikitext-2/valid.txt.xz", "rt", encoding="utf-8") as archive:
        (tmp_path / "wiki.txt").write_text(archive.read(200_000), "utf-8")
    words = [*trained_flags(trained), *flags(source__id_column="null")]
    wiki = result(capsys, *words, *flags(source__path=tmp_path / "wiki.txt"))
    own = result(capsys, *trained_flags(trained))
    assert wiki["tokens"] > 30_000
    assert wiki["unknown_share"] > 0.5
    assert own["unknown_share"] < 0.1
    assert own["perplexity"]["mean"] < 40
