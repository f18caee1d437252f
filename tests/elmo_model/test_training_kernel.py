"""A training step takes the fast way by default, and gives what the readable modules give."""

import pytest
import torch

from elmo_model.dropout import Dropout
from elmo_model.kernels import native
from elmo_model.kernels.selection import KERNEL_VARIABLE
from elmo_model.kernels.training import training_kernel
from elmo_model.lm_batches import Corpus, WordTable, packed_batches
from elmo_model.options import CharCnnOptions, ElmoOptions, LstmOptions, TrainingOptions
from elmo_model.training import TrainState, draw_masks, run_directions, train_step
from elmo_model.vocabulary import Vocabulary, count_words

# Largest deviations after five steps: of losses near 4, and of weights near 1. float32 differs by
# the order of sums; measured 5e-7 and 2e-6. bfloat16 rounds factors to 8 bits; measured 0.01.
LOSS_TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 0.05}
WEIGHT_TOLERANCE = 2e-5
STATE_TOLERANCE = 1e-5
SENTENCES = [[f"word{(7 * k + j) % 50}" for j in range(k % 9 + 1)] for k in range(200)]
VOCABULARY = Vocabulary.from_counts(count_words(SENTENCES))


def options_of(characters=True, projects=True, clip=None, layers=2, **training):
    keys = {"n_tokens_vocab": len(VOCABULARY), "n_negative_samples_batch": 20, "dropout": 0.3}
    lstm = LstmOptions(
        32 if projects else 16,
        16,
        layers,
        clip,
        clip if projects else None,
        use_skip_connections=True,
    )
    char_cnn = CharCnnOptions(4, ((1, 8), (2, 8), (3, 16)), 12, "relu", 1) if characters else None
    keys["all_clip_norm_val"] = 10.0
    return ElmoOptions(lstm, char_cnn=char_cnn, training=TrainingOptions(**{**keys, **training}))


def batches_of(options, num_batches=5):
    table = WordTable(
        VOCABULARY, options.char_cnn.max_characters_per_token if options.char_cnn else None
    )
    sequences = Corpus.of(SENTENCES, table).sequences()
    packed = packed_batches(sequences, table, 6, 8, options.bidirectional)
    return [batch for batch, _ in zip(packed, range(num_batches), strict=False)]


def trained(
    options,
    monkeypatch,
    *,
    reference,
    optimizer="adagrad",
    arithmetic=torch.float32,
    dropout=None,
):
    monkeypatch.setenv(KERNEL_VARIABLE, "reference" if reference else "")
    state = TrainState.create(options, seed=3, optimizer=optimizer)
    state.arithmetic, state.dropout = arithmetic, dropout
    losses = [train_step(state, batch).losses_S for batch in batches_of(options)]
    assert training_kernel(state.model).startswith("reference: ") == reference
    return state, torch.stack(losses)


CASES = {
    "characters, sampled softmax": options_of(),
    "clips that are active, full softmax": options_of(clip=0.1, sample_softmax=False),
    "no projection": options_of(projects=False, clip=0.3),
    "words, shared softmax": options_of(characters=False, share_embedding_softmax=True),
    "three layers": options_of(layers=3),
    "no dropout": options_of(dropout=0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_five_steps_with_dropout_equal_those_of_the_readable_modules(case, monkeypatch):
    assert_equal_steps(
        trained(CASES[case], monkeypatch, reference=False),
        trained(CASES[case], monkeypatch, reference=True),
    )


def assert_equal_steps(found, wanted):
    (fast, losses), (plain, expected) = found, wanted
    torch.testing.assert_close(losses, expected, atol=LOSS_TOLERANCE[torch.float32], rtol=0)
    for name in ("cells_SLBD", "outputs_SLBP"):
        mine, theirs = getattr(fast.carried, name), getattr(plain.carried, name)
        torch.testing.assert_close(mine, theirs, atol=STATE_TOLERANCE, rtol=0)
    for mine, theirs in zip(
        [*fast.model.parameters(), *fast.softmax.parameters()],
        [*plain.model.parameters(), *plain.softmax.parameters()],
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=WEIGHT_TOLERANCE, rtol=0)


DROPOUTS = {
    "variational": (CASES["characters, sampled softmax"], Dropout(0.3, "variational")),
    "weights": (CASES["no projection"], Dropout(weight_rate=0.5)),
    "words": (CASES["words, shared softmax"], Dropout(word_rate=0.4)),
    "all": (CASES["words, shared softmax"], Dropout(0.2, "variational", 0.3, 0.1)),
}


@pytest.mark.parametrize("kind", DROPOUTS)
def test_with_every_kind_of_dropout_steps_equal_those_of_the_readable_modules(kind, monkeypatch):
    options, dropout = DROPOUTS[kind]
    found = trained(options, monkeypatch, reference=False, dropout=dropout)
    wanted = trained(options, monkeypatch, reference=True, dropout=dropout)
    assert_equal_steps(found, wanted)
    _, without = trained(options, monkeypatch, reference=False, dropout=Dropout())
    assert not torch.allclose(found[1], without, atol=0.001, rtol=0)
    _, rounded = trained(
        options, monkeypatch, reference=False, arithmetic=torch.bfloat16, dropout=dropout
    )
    torch.testing.assert_close(rounded, wanted[1], atol=LOSS_TOLERANCE[torch.bfloat16], rtol=0)


def test_steps_of_adamw_equal_those_of_the_readable_modules(monkeypatch):
    # Its first steps are signs, and rounding decides those of gradients that are nearly zero: so
    # short steps, and only losses are compared.
    options = options_of(learning_rate=1e-4)
    _, losses = trained(options, monkeypatch, reference=False, optimizer="adamw")
    _, expected = trained(options, monkeypatch, reference=True, optimizer="adamw")
    torch.testing.assert_close(losses, expected, atol=LOSS_TOLERANCE[torch.float32], rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_products_leave_float32_weights_and_nearly_the_same_losses(case, monkeypatch):
    fast, losses = trained(CASES[case], monkeypatch, reference=False, arithmetic=torch.bfloat16)
    _, expected = trained(CASES[case], monkeypatch, reference=True)
    torch.testing.assert_close(losses, expected, atol=LOSS_TOLERANCE[torch.bfloat16], rtol=0)
    assert not torch.equal(losses, expected)
    assert {parameter.dtype for parameter in fast.model.parameters()} == {torch.float32}
    assert fast.carried.outputs_SLBP.dtype == fast.carried.cells_SLBD.dtype == torch.float32


def test_without_a_compiler_the_same_comes_out(monkeypatch):
    fast, losses = trained(CASES["characters, sampled softmax"], monkeypatch, reference=False)
    nothing = native.NativeCode(None, "the test says so")
    for module in ("training_cell", "char_training", "softmax", "training"):
        monkeypatch.setattr(f"elmo_model.kernels.{module}.load", lambda: nothing)
    slow, expected = trained(CASES["characters, sampled softmax"], monkeypatch, reference=False)
    torch.testing.assert_close(losses, expected, atol=LOSS_TOLERANCE[torch.float32], rtol=0)
    assert "in torch (the test says so)" in training_kernel(slow.model)


def test_gradients_arrive_at_the_parameters_through_autograd(monkeypatch):
    """As a wrapper of several processes needs it, which hooks the parameters' accumulation."""
    monkeypatch.setenv(KERNEL_VARIABLE, "")
    options = options_of()
    state = TrainState.create(options)
    state.dropout = Dropout(0.1, "variational", 0.1)
    batch = batches_of(options)[0]
    arrived = []
    for name, parameter in state.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(name))
    hidden, _ = run_directions(state.model, batch, None, draw_masks(state, batch))
    torch.stack([top.sum() for top in hidden]).sum().backward()
    assert sorted(arrived) == sorted(name for name, _ in state.model.named_parameters())
