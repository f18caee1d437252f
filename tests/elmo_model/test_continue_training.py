"""Training goes on from another model's weights, with another vocabulary."""

import json
import lzma
from dataclasses import replace
from itertools import islice

import h5py
import pytest
import torch

from elmo_model.continue_training import OutputLayer, continue_from, read_output_layer
from elmo_model.directory import (
    VOCABULARY_NAME,
    ModelFiles,
    load_directory,
    read_files,
    save_directory,
)
from elmo_model.errors import ElmoError, ModelFileError, VocabularyError
from elmo_model.lm_batches import Corpus, WordTable, packed_batches
from elmo_model.losses import Softmax
from elmo_model.options import CharCnnOptions, ElmoOptions, LstmOptions, TrainingOptions
from elmo_model.perplexity import perplexity
from elmo_model.softmax_file import SOFTMAX_NAME, write_softmax
from elmo_model.training import TrainState, new_optimizer, train_step
from elmo_model.vocabulary import MARKS, Vocabulary, count_words
from elmo_model.weight_table import WORD_TABLE
from tests.elmo_model.random_models import VOCABULARY, write_model

VARIANTS = [
    "A_char_relu_fullsoftmax",
    "B_char_tanh_clips_active",
    "C_token_share_embedding",
    "D_char_sampled_softmax",
    "E_token_sampled_softmax",
    "F_unidirectional_token",
]
CHAR_VARIANT, SHARED_VARIANT, TOKEN_VARIANT = VARIANTS[0], VARIANTS[2], VARIANTS[4]
# The same sums over the vocabulary in another order; the log-likelihoods are float32.
ORDER_TOLERANCE = 1e-5
TRAINING = TrainingOptions(
    dropout=0.1, all_clip_norm_val=10.0, n_negative_samples_batch=5, learning_rate=0.1
)


@pytest.fixture(scope="module")
def golden(shared):
    """A function that reads a variant of the original's: files, old output, batches of a text."""
    text = shared / "golden/bilm-tf-train"
    vocabulary = Vocabulary.read(text / "vocab.txt")
    sentences = [line.split(" ") for line in (text / "data.txt").read_text().split("\n")]

    def read(variant):
        folder = shared / "golden/tf-training" / variant
        files = read_files(
            folder / "options.json", folder / "dump_weights_of_init.hdf5", text / "vocab.txt"
        )
        softmax = Softmax(len(vocabulary), files.options.lstm.projection_dim)
        with h5py.File(folder / "init.hdf5") as file:
            is_shared = files.options.training.share_embedding_softmax
            weight = file["embedding" if is_shared else "softmax/W"][()]
            values = {"weight": weight, "bias": file["softmax/b"][()]}
        softmax.load_state_dict({key: torch.from_numpy(value) for key, value in values.items()})
        expected = json.loads((folder / "expected.json").read_text())
        return files, OutputLayer(softmax, vocabulary.words), expected["test_perplexity_bs1"]

    return read, vocabulary, sentences


def perplexity_of(model, softmax, vocabulary, sentences, batch_size=1, unroll_steps=1):
    options = model.options
    char_cnn = options.char_cnn
    table = WordTable(vocabulary, char_cnn.max_characters_per_token if char_cnn else None)
    sequences = Corpus.of(sentences, table).sequences()
    batches = packed_batches(sequences, table, batch_size, unroll_steps, options.bidirectional)
    return perplexity(model, softmax, batches)


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_the_same_vocabulary_the_original_perplexity_is_kept(golden, variant):
    read, vocabulary, sentences = golden
    files, output, expected = read(variant)
    start = continue_from(files, vocabulary, output=output)
    for name, value in start.model.state_dict().items():
        assert torch.equal(value, files.state[name]), name
    assert torch.equal(start.softmax.weight, output.softmax.weight)
    assert torch.equal(start.softmax.bias, output.softmax.bias)
    is_token = files.options.char_cnn is None
    assert (start.num_kept_vectors, start.num_kept_outputs) == (32 if is_token else 0, 32)
    found = perplexity_of(start.model, start.softmax, vocabulary, sentences)
    assert found.mean == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_order_of_the_words_changes_no_prediction(golden, variant):
    read, vocabulary, sentences = golden
    files, output, expected = read(variant)
    other = Vocabulary(reversed(vocabulary.words))
    start = continue_from(files, other, output=output)
    assert torch.equal(start.softmax.weight.flip(0), output.softmax.weight)
    assert torch.equal(start.softmax.bias.flip(0), output.softmax.bias)
    found = perplexity_of(start.model, start.softmax, other, sentences)
    assert found.mean == pytest.approx(expected, rel=ORDER_TOLERANCE, abs=5e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_words_of_both_vocabularies_are_kept_and_new_ones_random(golden, variant):
    read, old, _ = golden
    files, output, _ = read(variant)
    new = Vocabulary([*MARKS, "domain", *old.words[10:20], "corpus", "the"])
    start = continue_from(files, new, output=output, seed=3)
    assert start.model.options.training.n_tokens_vocab == len(new) == 16
    for row, word in enumerate(new.words):
        old_row = old.words.index(word) if word in old else None
        if old_row is not None:
            assert torch.equal(start.softmax.weight[row], output.softmax.weight[old_row])
            assert start.softmax.bias[row] == output.softmax.bias[old_row]
        else:
            assert word in ("domain", "corpus")
            assert start.softmax.weight[row].abs().sum() > 0
            assert start.softmax.bias[row] == 0
        if files.options.char_cnn is None and old_row is not None:
            table = start.model.token_embedding.embedding
            assert torch.equal(table[row], files.state[WORD_TABLE][old_row])
    assert start.num_kept_outputs == 14
    assert start.num_kept_vectors == (14 if files.options.char_cnn is None else 0)
    rest = {key: value for key, value in start.model.state_dict().items() if key != WORD_TABLE}
    assert rest
    for name, value in rest.items():
        assert torch.equal(value, files.state[name]), name


@pytest.mark.parametrize("variant", [CHAR_VARIANT, SHARED_VARIANT, TOKEN_VARIANT])
def test_equal_seeds_give_equal_random_rows_and_other_seeds_others(golden, variant):
    read, old, _ = golden
    files, _, _ = read(variant)
    new = Vocabulary([*old.words, "domain"])
    first, again, other = (continue_from(files, new, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.softmax.weight, again.softmax.weight)
    assert not torch.equal(first.softmax.weight[-1], other.softmax.weight[-1])
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_new_rows_are_drawn_as_in_a_new_model(golden):
    read, old, _ = golden
    files, output, _ = read(TOKEN_VARIANT)
    new = Vocabulary([*old.words, *(f"word{number}" for number in range(5000))])
    start = continue_from(files, new, output=output)
    width = files.options.lstm.projection_dim
    limit = (6 / (len(new) + width)) ** 0.5
    drawn = start.model.token_embedding.embedding[len(old) :]
    assert 0.99 * limit < drawn.abs().max() <= limit
    assert drawn.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
    assert start.softmax.weight[len(old) :].std().item() == pytest.approx(width**-0.5, rel=0.02)


def test_without_an_old_softmax_all_of_it_is_random(golden):
    read, vocabulary, _ = golden
    files, output, _ = read(TOKEN_VARIANT)
    start = continue_from(files, vocabulary)
    assert start.num_kept_outputs == 0
    assert not (start.softmax.weight == output.softmax.weight).all(dim=1).any()
    assert not start.softmax.bias.any()
    assert torch.equal(start.model.token_embedding.embedding, files.state[WORD_TABLE])


def test_a_shared_table_stays_one_parameter(golden):
    read, old, _ = golden
    files, output, _ = read(SHARED_VARIANT)
    start = continue_from(files, Vocabulary([*old.words, "domain"]), output=output)
    assert start.softmax.weight is start.model.token_embedding.embedding
    untied = replace(files.options.training, share_embedding_softmax=False)
    start = continue_from(files, old, untied, output)
    assert start.softmax.weight is not start.model.token_embedding.embedding
    assert torch.equal(start.softmax.weight, files.state[WORD_TABLE])


def test_a_shared_table_and_a_softmax_of_another_model_are_refused(golden):
    read, vocabulary, _ = golden
    files, _, _ = read(SHARED_VARIANT)
    other = OutputLayer(Softmax(32, files.options.lstm.projection_dim), vocabulary.words)
    with pytest.raises(ModelFileError, match="shares its word table .* different models"):
        continue_from(files, vocabulary, output=other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_changes_neither_the_old_weights_nor_the_old_softmax(golden, variant):
    read, vocabulary, sentences = golden
    files, output, _ = read(variant)
    before = {name: value.clone() for name, value in files.state.items()}
    weight = output.softmax.weight.detach().clone()
    start = continue_from(files, vocabulary, output=output)
    optimizer = new_optimizer(start.model, start.softmax, "adagrad")
    state = TrainState(start.model, start.softmax, optimizer)
    char_cnn = files.options.char_cnn
    table = WordTable(vocabulary, char_cnn.max_characters_per_token if char_cnn else None)
    sequences = Corpus.of(sentences, table).sequences()
    bidirectional = files.options.bidirectional
    for batch in islice(packed_batches(sequences, table, 2, 10, bidirectional), 2):
        assert train_step(state, batch).loss > 0
    for name, value in files.state.items():
        assert torch.equal(value, before[name]), name
        assert not torch.equal(value, start.model.state_dict()[name]), name
    assert torch.equal(output.softmax.weight, weight)


@pytest.mark.parametrize(
    "shape", ["like the released models", "word input", "one direction", "no highway", "one layer"]
)
def test_a_released_model_goes_on_and_is_saved_and_loaded_as_a_directory(tmp_path, shape):
    released = write_model(tmp_path, shape)
    options = json.loads(released["options_file"].read_text())
    assert "n_tokens_vocab" not in options
    files = read_files(**released)
    new = Vocabulary([*MARKS, "dog", "cat", "naïve", "the", "."])
    start = continue_from(files, new, TRAINING)
    assert start.model.options == replace(
        files.options, training=replace(TRAINING, n_tokens_vocab=8)
    )
    words = len(new) - 2 if files.options.char_cnn is None else 0
    assert (start.num_kept_vectors, start.num_kept_outputs) == (words, 0)
    state = TrainState(
        start.model, start.softmax, new_optimizer(start.model, start.softmax, "adamw")
    )
    table = WordTable(new, files.options.char_cnn and 20)
    sentences = Corpus.of([["the", "cat", "sat", "."]] * 9, table).sequences()
    for batch in packed_batches(sentences, table, 2, 5, files.options.bidirectional):
        train_step(state, batch)
    directory = tmp_path / "model"
    save_directory(directory, start.model.options, start.model.state_dict(), new.words)
    write_softmax(directory / SOFTMAX_NAME, start.softmax)
    again = load_directory(directory)
    assert again.options == start.model.options
    if files.options.char_cnn:
        written = json.loads((directory / "options.json").read_text())
        assert written["char_cnn"]["n_characters"] == 262
    for name, value in start.model.state_dict().items():
        assert torch.equal(again.state[name], value), name
    output = read_output_layer(directory, again.options)
    assert output.words == new.words
    assert torch.equal(output.softmax.weight, start.softmax.weight)
    # And once more, with the options that were saved.
    third = continue_from(again, new, output=output)
    assert third.num_kept_outputs == len(new)


def test_of_two_equal_words_of_an_old_table_the_later_counts_as_in_prediction():
    options = ElmoOptions(LstmOptions(4, 3), training=replace(TRAINING, sample_softmax=False))
    new = Vocabulary([*MARKS, "the"])
    old = continue_from(random_files(options, [*MARKS, "the", "of", "the"]), new)
    assert torch.equal(old.model.token_embedding.embedding[3], torch.full((3,), 5.0))


def random_files(options, words):
    """A token model whose table's row k is full of k."""
    width = options.lstm.projection_dim
    sized = replace(options, training=replace(options.training, n_tokens_vocab=len(words)))
    state = dict(TrainState.create(sized).model.state_dict())
    state[WORD_TABLE] = torch.arange(len(words)).float()[:, None].repeat(1, width)
    return ModelFiles(sized, state, tuple(words))


@pytest.mark.parametrize(
    ("shape", "training", "message"),
    [
        ("one layer", None, "n_negative_samples_batch is missing .* released models"),
        (
            "one layer",
            replace(TRAINING, n_negative_samples_batch=8),
            "n_negative_samples_batch is 8, the vocabulary has 8 words",
        ),
        (
            "one layer",
            replace(TRAINING, share_embedding_softmax=True),
            "share_embedding_softmax needs word input",
        ),
    ],
)
def test_training_options_that_cannot_work_are_refused(tmp_path, shape, training, message):
    files = read_files(**write_model(tmp_path, shape))
    with pytest.raises(ElmoError, match=message):
        continue_from(files, Vocabulary(VOCABULARY), training)


def test_a_softmax_of_another_width_or_vocabulary_is_refused(tmp_path):
    files = read_files(**write_model(tmp_path, "one layer"))
    vocabulary = Vocabulary(VOCABULARY)
    with pytest.raises(ModelFileError, match=r"rows of 7 numbers.*projection_dim is 6"):
        continue_from(files, vocabulary, TRAINING, OutputLayer(Softmax(8, 7), vocabulary.words))
    with pytest.raises(ModelFileError, match="9 rows, its vocabulary 8 words"):
        OutputLayer(Softmax(9, 6), vocabulary.words)


def test_a_directory_without_a_softmax_has_none_and_one_without_its_words_is_refused(tmp_path):
    options = ElmoOptions(LstmOptions(8, 6), training=TRAINING)
    assert read_output_layer(tmp_path, options) is None
    write_softmax(tmp_path / SOFTMAX_NAME, Softmax(4, 6))
    with pytest.raises(VocabularyError, match=r"vocabulary\.txt: cannot be read"):
        read_output_layer(tmp_path, options)
    Vocabulary([*MARKS, "the", "of"]).write(tmp_path / VOCABULARY_NAME)
    with pytest.raises(ModelFileError, match="different models"):
        read_output_layer(tmp_path, options)


@pytest.fixture(scope="module")
def sentences(shared):
    with lzma.open(shared / "data/wikitext-2/valid.txt.xz", "rt", encoding="utf-8") as archive:
        lines = [line.split() for line, _ in zip(archive, range(1200), strict=False)]
    return [line for line in lines if line]


CHAR_CNN = CharCnnOptions(8, ((1, 16), (2, 16), (3, 32)), 20, "relu", 1)
INPUTS = {"characters": (CHAR_CNN, False), "words": (None, False), "shared words": (None, True)}


@pytest.mark.parametrize("kind", INPUTS)
def test_on_real_text_a_trained_model_goes_on_where_it_stopped(tmp_path, sentences, kind):
    char_cnn, is_shared = INPUTS[kind]
    held_out, train = sentences[:40], sentences[40:]
    vocabulary = Vocabulary.from_counts(count_words(train), max_size=1500)
    training = TrainingOptions(
        dropout=0.0,
        all_clip_norm_val=10.0,
        n_tokens_vocab=len(vocabulary),
        n_negative_samples_batch=200,
        share_embedding_softmax=is_shared,
        learning_rate=0.01,
    )
    lstm = LstmOptions(64, 32, 2, cell_clip=3.0, proj_clip=3.0, use_skip_connections=True)
    state = TrainState.create(ElmoOptions(lstm, char_cnn, training=training), optimizer="adamw")
    table = WordTable(vocabulary, 20 if char_cnn else None)
    sequences = Corpus.of(train, table).endless_sequences(seed=1)
    for batch in islice(packed_batches(sequences, table, 32, 20), 12):
        train_step(state, batch)
    options = state.model.options
    save_directory(tmp_path, options, state.model.state_dict(), vocabulary.words)
    write_softmax(tmp_path / SOFTMAX_NAME, state.softmax)

    files = load_directory(tmp_path)
    output = read_output_layer(tmp_path, files.options)
    same = continue_from(files, vocabulary, output=output)
    old = perplexity_of(state.model, state.softmax, vocabulary, held_out, 8, 20)
    assert perplexity_of(same.model, same.softmax, vocabulary, held_out, 8, 20) == old

    # With half of the words anew, the model still knows more than one that starts from nothing.
    halved = Vocabulary(
        word if row % 2 or word in MARKS else f"new-{word}"
        for row, word in enumerate(vocabulary.words)
    )
    half = continue_from(files, halved, output=output)
    assert half.num_kept_outputs < 0.6 * len(halved)
    fresh = TrainState.create(replace(options, training=training))
    kept = perplexity_of(half.model, half.softmax, halved, held_out, 8, 20)
    nothing = perplexity_of(fresh.model, fresh.softmax, halved, held_out, 8, 20)
    assert kept.mean < nothing.mean
