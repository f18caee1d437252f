"""The language model in fast kernels against the modules that training uses."""

import numpy as np
import pytest
import torch

from elmo_model import Encoder
from elmo_model.directory import read_files
from elmo_model.kernels.gpu import build_gpu_kernel
from elmo_model.language_model import LanguageModel
from elmo_model.lm_batches import WordTable, packed_batches
from elmo_model.losses import Softmax
from elmo_model.packed_text import PackedText, carried_texts, sentence_texts
from elmo_model.perplexity import LossSums, measure, perplexity
from elmo_model.softmax_file import SoftmaxWeights
from elmo_model.vocabulary import Vocabulary
from elmo_model.weights import build
from tests.elmo_model.plain_perplexity import plain_losses, plain_perplexity
from tests.elmo_model.random_models import SHAPES, VOCABULARY, write_model

# Two ways to add up a few hundred products of float32 in every step of a recurrence.
TOLERANCE = 1e-5
TEXT = ["the cat sat .", "über the unheard-of cat", "", ". . the", "sat", "cat cat cat cat cat ."]


class Model:
    """One of the random models with a softmax over its vocabulary, both ways."""

    def __init__(self, directory, shape, dtype="float32"):
        self.files = read_files(**write_model(directory, shape))
        options = self.files.options
        generator = torch.Generator().manual_seed(1)
        self.softmax = Softmax(len(VOCABULARY), options.lstm.projection_dim)
        self.softmax.reset_parameters(generator)
        with torch.no_grad():
            self.softmax.bias.normal_(generator=generator)
        weights = SoftmaxWeights(self.softmax.weight.detach(), self.softmax.bias.detach())
        self.reference = build(options, self.files.state)
        self.fast = LanguageModel(self.files, weights, device="cpu", dtype=dtype)
        char_cnn = options.char_cnn
        max_characters = char_cnn.max_characters_per_token if char_cnn else None
        self.table = WordTable(Vocabulary(VOCABULARY), max_characters)
        self.bidirectional = options.bidirectional

    def sequences(self):
        return [self.table.sequence_of(sentence.split()) for sentence in TEXT * 3]

    def measured(self, texts, *, carries):
        return measure(self.fast, texts, carries_state=carries).perplexity()


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_perplexity_is_that_of_the_reference(shape, num_rows, tmp_path):
    model = Model(tmp_path, shape)
    arguments = (model.table, num_rows)
    batches = packed_batches(model.sequences(), *arguments, 1, model.bidirectional)
    wanted = plain_perplexity(model.reference, model.softmax, batches)
    texts = carried_texts(model.sequences(), *arguments, 5, model.bidirectional)
    found = model.measured(texts, carries=True)
    assert found.num_predictions == wanted.num_predictions
    assert found.forward == pytest.approx(wanted.forward, rel=TOLERANCE)
    assert found.mean == pytest.approx(wanted.mean, rel=TOLERANCE)
    assert (found.backward is None) == (not model.bidirectional)


@pytest.mark.parametrize("shape", ["like the released models", "word input", "one direction"])
def test_the_kernel_of_gpus_measures_the_same(shape, tmp_path):
    """Its code runs on a CPU, too."""
    model = Model(tmp_path, shape)
    arguments = (model.table, 3, 5, model.bidirectional)
    wanted = model.measured(carried_texts(model.sequences(), *arguments), carries=True)
    model.fast.kernel = build_gpu_kernel(model.reference, torch.float32)
    found = model.measured(carried_texts(model.sequences(), *arguments), carries=True)
    assert found.mean == pytest.approx(wanted.mean, rel=TOLERANCE)


def test_batches_of_training_are_measured_alike(tmp_path):
    model = Model(tmp_path, "like the released models")
    batches = list(packed_batches(model.sequences(), model.table, 2, 7))
    wanted = plain_perplexity(model.reference, model.softmax, batches)
    for found in (
        model.measured(map(PackedText.of_batch, batches), carries=True),
        perplexity(model.reference, model.softmax, batches),
    ):
        assert found.forward == pytest.approx(wanted.forward, rel=TOLERANCE)
        assert found.backward == pytest.approx(wanted.backward, rel=TOLERANCE)


def test_modules_are_measured_as_they_are_and_can_be_trained_on(tmp_path):
    model = Model(tmp_path, "word input")
    batches = list(packed_batches(model.sequences(), model.table, 2, 7))
    before = perplexity(model.reference, model.softmax, batches)
    parameters = [*model.reference.parameters(), *model.softmax.parameters()]
    assert all(parameter.requires_grad for parameter in parameters)
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(1.5)
    after = perplexity(model.reference, model.softmax, batches)
    wanted = plain_perplexity(model.reference, model.softmax, batches)
    assert after.mean == pytest.approx(wanted.mean, rel=TOLERANCE)
    assert after.mean != pytest.approx(before.mean, rel=0.001)


@pytest.mark.parametrize("shape", ["like the released models", "word input", "one direction"])
def test_from_a_zero_state_all_sentences_together_are_as_each_alone(shape, tmp_path):
    model = Model(tmp_path, shape)
    sums = LossSums(model.fast.options.num_directions)
    for sequence in model.sequences():
        batch = next(
            packed_batches([sequence], model.table, 1, len(sequence) - 1, model.bidirectional)
        )
        alone = PackedText.of_batch(batch)
        sums.add(list(model.fast.losses(alone)[0]))
    texts = sentence_texts(model.sequences(), model.table, 40, 60, model.bidirectional)
    found = model.measured(texts, carries=False)
    wanted = sums.perplexity()
    assert found.num_predictions == wanted.num_predictions
    assert found.mean == pytest.approx(wanted.mean, rel=TOLERANCE)


def test_from_a_zero_state_words_are_predicted_from_the_vectors_that_embedding_gives(tmp_path):
    model = Model(tmp_path, "like the released models")
    words = TEXT[0].split()
    text = next(sentence_texts([model.table.sequence_of(words)], model.table, 100, 100))
    losses_SN, _ = model.fast.losses(text)
    top = Encoder(model.files, device="cpu").encode([words]).layers[-1, 0]
    forward, backward = top.chunk(2, dim=1)
    ids = torch.from_numpy(Vocabulary(VOCABULARY).ids_of(["<S>", *words, "</S>"]))
    after = plain_losses(model.softmax, forward, ids[2:])
    before = plain_losses(model.softmax, backward, ids[:-2])
    # Of each direction the first prediction is made from a mark, which embedding leaves out.
    np.testing.assert_allclose(losses_SN[0, 1:], after, rtol=TOLERANCE)
    np.testing.assert_allclose(losses_SN[1, 1:], before.flip(0), rtol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_arithmetic_measures_nearly_the_same(dtype, tmp_path):
    plain = Model(tmp_path, "like the released models")
    model = Model(tmp_path, "like the released models", dtype)
    wanted = plain.measured(sentence_texts(plain.sequences(), plain.table, 99, 99), carries=False)
    found = model.measured(sentence_texts(model.sequences(), model.table, 99, 99), carries=False)
    # These weights are small and random; on a trained model the difference is far smaller.
    assert found.mean == pytest.approx(wanted.mean, rel=0.05)
