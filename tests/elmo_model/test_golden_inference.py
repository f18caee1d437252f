"""Values that the original programs computed, reproduced: every one that concerns inference.

At padded positions the original's layer 0 holds the vector of a word without characters; ours is
zero there, as its upper layers are. Values are therefore compared on tokens.
"""

import json

import h5py
import numpy as np
import pytest
import torch

from elmo_model import Elmo, Encoder, ScalarMix, batch_to_ids
from elmo_model.characters import CharacterEncoder
from elmo_model.errors import VocabularyError
from elmo_model.weights import read_token_embeddings, write_token_embeddings
from elmo_model.word_ids import read_words

pytestmark = pytest.mark.shared

# What the original's own test allows: float32 differs this much between programs.
ATOL, RTOL = 1e-6, 1e-5
NUM_BATCHES = 10


def assert_close(found, expected):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=RTOL, atol=ATOL)


@pytest.fixture(scope="module")
def model(shared):
    folder = shared / "golden" / "bilm-tf"
    return {
        "options_file": folder / "options.json",
        "weights_file": folder / "lm_weights.hdf5",
    }


@pytest.fixture(scope="module")
def encoder(model):
    return Encoder.from_files(**model)


@pytest.fixture(scope="module")
def batches(shared):
    """Ten batches of three sentences."""
    path = shared / "golden" / "bilm-tf" / "lm_embeddings_sentences.json"
    rows = json.loads(path.read_text())
    return [[row[batch].split() for row in rows] for batch in range(NUM_BATCHES)]


@pytest.fixture(scope="module")
def outputs(shared):
    with h5py.File(shared / "golden" / "tf-inference" / "bilm-tf.hdf5") as file:
        yield file


def run(encoder, batches):
    """Activations of the batches, each row carrying its state on."""
    state, results = None, []
    for batch in batches:
        results.append(encoder.encode(batch, state))
        state = results[-1].state
    return results


def test_the_authors_top_layer_is_reproduced_over_ten_batches(shared, encoder, batches):
    for index, activations in enumerate(run(encoder, batches)):
        for row in range(3):
            path = shared / "golden" / "bilm-tf" / f"lm_embeddings_{row}.hdf5"
            with h5py.File(path) as file:
                forward, backward = file[str(index)][...]
            expected = np.concatenate([forward, backward], axis=1)
            assert_close(activations.layers[-1, row, : len(expected)], expected)


def test_all_layers_of_the_original_are_reproduced_over_ten_batches(encoder, batches, outputs):
    for index, activations in enumerate(run(encoder, batches)):
        group = outputs[f"batch_{index}"]
        mask = group["mask"][...].astype(bool)
        assert np.array_equal(activations.mask, mask)
        assert np.array_equal(mask.sum(axis=1), group["lengths"][...])
        expected = group["lm_embeddings"][...].transpose(1, 0, 2, 3)
        assert_close(activations.layers[:, mask], expected[:, mask])
        # The upper layers of the original are zero at padding, too.
        assert_close(activations.layers[1:], expected[1:])
        assert not activations.layers[0, ~mask].any()


def test_a_stateless_encoder_reproduces_the_first_batch_only(encoder, batches, outputs):
    for index, batch in enumerate(batches[:2]):
        group = outputs[f"batch_{index}"]
        mask = group["mask"][...].astype(bool)
        layers = encoder.encode(batch).layers[:, mask].numpy()
        expected = group["lm_embeddings"][...].transpose(1, 0, 2, 3)[:, mask]
        assert np.allclose(layers, expected, rtol=RTOL, atol=ATOL) == (index == 0)


def test_the_character_ids_of_the_original_are_reproduced(batches, outputs):
    spell = CharacterEncoder(50)
    for index, batch in enumerate(batches):
        expected = outputs[f"batch_{index}/char_ids"][...]
        found = spell.encode_sentences([["<S>", *sentence, "</S>"] for sentence in batch])
        assert np.array_equal(found, expected)


def test_the_context_free_vectors_of_the_original_are_reproduced(encoder, batches, outputs):
    for index, batch in enumerate(batches):
        expected = outputs[f"batch_{index}/token_embeddings"][...]
        for row, sentence in enumerate(batch):
            found = encoder.embed_words(["<S>", *sentence, "</S>"])
            assert_close(found, expected[row, : len(found)])


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(
    ("name", "weights", "gamma", "coefficient"),
    [("mix0", [0.1, 0.3, 0.5], 1.1, 1.0), ("mix1", [0.2, 0.4, 0.6], 0.88, 0.001)],
)
def test_mixes_and_their_regulariser_are_reproduced(
    name, weights, gamma, coefficient, normalise, encoder, batches, outputs
):
    layer_norm = "bilm-tf" if normalise else None
    mix = ScalarMix(3, layer_norm=layer_norm, initial_weights=weights, gamma=gamma)
    key = f"{name}_ln{int(normalise)}"
    for index, activations in enumerate(run(encoder, batches)):
        group = outputs[f"batch_{index}"]
        mask = activations.mask
        mixed = mix(activations.layers, mask).detach()
        assert_close(mixed[mask], group[f"weighted/{key}"][...][mask])
        assert_close(mix.l2_term(coefficient).detach(), group[f"l2_reg/{key}"][0])


def test_the_top_layer_alone_is_reproduced_and_has_no_regulariser(encoder, batches, outputs):
    mix = ScalarMix(3, use_top_only=True)
    for index, activations in enumerate(run(encoder, batches)):
        mask = activations.mask
        expected = outputs[f"batch_{index}/weighted/top_only"][...]
        assert_close(mix(activations.layers, mask).detach()[mask], expected[mask])
    assert mix.l2_term(1.0) == 0.0


@pytest.mark.parametrize("normalise", ["bilm-tf", False])
def test_the_stateful_module_reproduces_the_mixes(normalise, model, batches, outputs):
    elmo = Elmo.from_files(
        *model.values(),
        do_layer_norm=normalise,
        stateful=True,
        scalar_mix_parameters=[0.1, 0.3, 0.5],
    )
    elmo.eval()
    elmo.scalar_mixes[0].gamma.fill_(1.1)
    for index, batch in enumerate(batches):
        result = elmo(batch_to_ids(batch))
        expected = outputs[f"batch_{index}/weighted/mix0_ln{int(bool(normalise))}"][...]
        mask = result["mask"]
        assert_close(result["elmo_representations"][0][mask], expected[mask])


def test_the_dumped_sentences_are_reproduced(shared, encoder):
    folder = shared / "golden" / "tf-inference"
    sentences = (folder / "bilm-tf_dataset.txt").read_text("utf-8").splitlines()
    state = None
    with h5py.File(folder / "bilm-tf_dump_bilm_embeddings.hdf5") as file:
        assert len(file) == len(sentences)
        for index, sentence in enumerate(sentences):
            activations = encoder.encode([sentence.split()], state)
            state = activations.state
            assert_close(activations.layers[:, 0], file[str(index)][...])


def test_the_dumped_word_vectors_are_reproduced(shared, encoder):
    words = read_words(shared / "golden" / "bilm-tf" / "vocab_test.txt")
    path = shared / "golden" / "tf-inference" / "bilm-tf_dump_token_embeddings.hdf5"
    assert_close(encoder.embed_words(words), read_token_embeddings(path, 16))


def test_dumped_word_vectors_in_the_place_of_characters_give_the_same_layers(
    model, encoder, batches, outputs, tmp_path
):
    words = ["<S>", "</S>", *{word: 0 for batch in batches for words in batch for word in words}]
    (tmp_path / "vocabulary.txt").write_text("\n".join(words), "utf-8")
    write_token_embeddings(tmp_path / "words.hdf5", encoder.embed_words(words))
    by_word = Encoder.from_files(
        **model,
        vocabulary_file=tmp_path / "vocabulary.txt",
        token_embeddings_file=tmp_path / "words.hdf5",
    )
    for index, activations in enumerate(run(by_word, batches)):
        mask = activations.mask
        expected = outputs[f"batch_{index}/lm_embeddings"][...].transpose(1, 0, 2, 3)
        assert_close(activations.layers[:, mask], expected[:, mask])


def test_the_originals_dump_of_word_vectors_takes_the_place_of_characters(
    shared, model, encoder, batches
):
    folder = shared / "golden"
    by_word = Encoder.from_files(
        **model,
        vocabulary_file=folder / "bilm-tf" / "vocab_test.txt",
        token_embeddings_file=folder / "tf-inference" / "bilm-tf_dump_token_embeddings.hdf5",
    )
    for batch in (batches[3], batches[4]):  # these hold no word that was not dumped
        assert_close(by_word.encode(batch).layers, encoder.encode(batch).layers)
    with pytest.raises(VocabularyError, match="'84' is not listed and <UNK> is not either"):
        by_word.encode(batches[0])


def test_rows_beyond_a_smaller_batch_keep_their_state(encoder, batches):
    """The original uses and updates as many rows of its state as the batch has."""
    wide = encoder.encode(batches[0]).state
    narrow = encoder.encode(batches[1][:1], wide.first_rows(1)).state
    merged = wide.updated(narrow)
    assert torch.equal(merged.cells_SLBD[:, :, :1], narrow.cells_SLBD)
    assert torch.equal(merged.cells_SLBD[:, :, 1:], wide.cells_SLBD[:, :, 1:])
    wider = wide.first_rows(4)
    assert torch.equal(wider.outputs_SLBP[:, :, :3], wide.outputs_SLBP)
    assert not wider.outputs_SLBP[:, :, 3].any()


def test_the_characters_of_the_training_programs_are_reproduced(shared):
    path = shared / "golden" / "bilm-data-expected" / "expected.json"
    expected = json.loads(path.read_text())
    words = expected["char_ids_max5"]
    found = CharacterEncoder(5, shifted=False).encode(list(words))
    assert found.tolist() == list(words.values())
    batcher = expected["batcher"]
    sentences = [["<S>", *sentence, "</S>"] for sentence in batcher["sentences"]]
    assert CharacterEncoder(50).encode_sentences(sentences).tolist() == batcher["char_ids"]


VARIANTS = (
    "A_char_relu_fullsoftmax",
    "B_char_tanh_clips_active",
    "C_token_share_embedding",
    "D_char_sampled_softmax",
    "E_token_sampled_softmax",
    "F_unidirectional_token",
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dumped_and_initial_weights_of_training_runs_are_the_same_model(shared, variant):
    folder = shared / "golden" / "tf-training" / variant
    vocabulary = shared / "golden" / "bilm-tf-train" / "vocab.txt"
    encoders = [
        Encoder.from_files(folder / "options.json", folder / name, vocabulary_file=vocabulary)
        for name in ("dump_weights_of_init.hdf5", "init.hdf5")
    ]
    assert encoders[0].weights_sha256 == encoders[1].weights_sha256
    sentence = ["neural", "language", "models", "unheard-of"]
    layers = encoders[0].encode([sentence]).layers
    assert layers.shape == (3, 1, 4, 8 if variant.startswith("F") else 16)
    assert torch.isfinite(layers).all()
