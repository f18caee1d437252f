"""The CPU kernels give the reference's numbers, whatever the batch, the threads and the machine."""

import numpy as np
import pytest
import torch

from elmo_model import Encoder
from elmo_model.errors import DeviceError
from elmo_model.kernels import native, packed_linear
from elmo_model.kernels.selection import KERNEL_VARIABLE
from tests.elmo_model.random_models import SHAPES, write_model

# The error's length, in units of the layer's. float32: the order of sums. bfloat16: 8 bits of each.
# int8: 127 steps. These models' random recurrences amplify all of them.
TOLERANCE = {"float32": 3e-6, "bfloat16": 4e-2, "int8": 1e-1}
WITHOUT_PROJECTION = [name for name in SHAPES if "no projection in" in name]
# More rows than there are threads' parts, one word, none, marks as words, and one long row.
SENTENCES = [
    [],
    ["."],
    ["the"] * 40,
    *([["the", "cat", "sat", "on", f"mat{number}", "."][: 1 + number % 6] for number in range(30)]),
    ["über", "</S>", "", "a-word-longer-than-twenty-bytes", "<S>", "日本語", "🙂🙂🙂🙂🙂"],
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def encoder_of(folder, shape, dtype, threads=1):
    torch.set_num_threads(threads)
    encoder = Encoder.from_files(**write_model(folder, shape), dtype=dtype)
    torch.set_num_threads(1)
    return encoder


def deviation(found, expected):
    """The error's Euclidean length, layer by layer, in units of the layer's."""
    error = (found.double() - expected.double()).flatten(1).norm(dim=1)
    return float((error / expected.double().flatten(1).norm(dim=1)).max())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_layers_and_states_agree_with_float64(shape, dtype, tmp_path):
    if dtype == "int8" and shape in WITHOUT_PROJECTION:
        with pytest.raises(DeviceError, match="needs a model with a projection"):
            encoder_of(tmp_path, shape, dtype)
        return
    encoder = encoder_of(tmp_path, shape, dtype)
    exact = encoder_of(tmp_path, shape, "float64")
    assert encoder.kernel.name == "cpu"
    assert exact.kernel.name == "reference"
    found, expected = encoder.encode(SENTENCES), exact.encode(SENTENCES)
    for _ in range(2):
        assert deviation(found.layers, expected.layers) < TOLERANCE[dtype]
        assert deviation(found.state.outputs_SLBP, expected.state.outputs_SLBP) < TOLERANCE[dtype]
        assert deviation(found.state.cells_SLBD, expected.state.cells_SLBD) < TOLERANCE[dtype]
        # The carried state goes in, too.
        found = encoder.encode(SENTENCES, found.state)
        expected = exact.encode(SENTENCES, expected.state)


# torch's own passes compute the end of an array another way, and other batches end elsewhere.
@pytest.mark.compiler
@pytest.mark.parametrize("threads", [2, 3, 4])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_number_of_threads_changes_no_bit(dtype, threads, tmp_path):
    shape = next(name for name in SHAPES if name not in WITHOUT_PROJECTION)
    one = encoder_of(tmp_path, shape, dtype).encode(SENTENCES)
    many = encoder_of(tmp_path, shape, dtype, threads).encode(SENTENCES)
    assert torch.equal(one.layers, many.layers)
    assert torch.equal(one.state.cells_SLBD, many.state.cells_SLBD)
    assert torch.equal(one.state.outputs_SLBP, many.state.outputs_SLBP)


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_sentence_has_the_same_bits_alone_and_among_any_others(dtype, tmp_path):
    shape = next(name for name in SHAPES if name not in WITHOUT_PROJECTION)
    encoder = encoder_of(tmp_path, shape, dtype)
    together = encoder.encode(SENTENCES).layers
    order = np.random.default_rng(1).permutation(len(SENTENCES))
    shuffled = encoder.encode([SENTENCES[place] for place in order]).layers
    for place, row in enumerate(order):
        assert torch.equal(shuffled[:, place], together[:, row])
    for row, sentence in enumerate(SENTENCES):
        alone = encoder_of(tmp_path, shape, dtype) if row < 3 else encoder
        length = len(sentence)
        assert torch.equal(alone.encode([sentence]).layers[:, 0], together[:, row, :length])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_without_a_compiler_torch_does_what_the_c_code_does(shape, dtype, tmp_path, monkeypatch):
    native.load.cache_clear()
    monkeypatch.setenv(native.COMPILER_VARIABLE, "")
    try:
        encoder = encoder_of(tmp_path, shape, dtype)
        if shape not in WITHOUT_PROJECTION:
            with pytest.raises(DeviceError, match="no C compiler"):
                encoder_of(tmp_path, shape, "int8")
    finally:
        native.load.cache_clear()
    assert "in torch (no C compiler was found)" in encoder.kernel.reason
    expected = encoder_of(tmp_path, shape, "float64").encode(SENTENCES)
    assert deviation(encoder.encode(SENTENCES).layers, expected.layers) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_torchs_packed_product_the_plain_one_is_taken(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None)
    packed_linear.can_pack.cache_clear()
    shape = next(iter(SHAPES))
    try:
        encoder = encoder_of(tmp_path, shape, dtype)
        expected = encoder_of(tmp_path, shape, "float64").encode(SENTENCES)
        assert "plain products" in encoder.kernel.reason
        assert deviation(encoder.encode(SENTENCES).layers, expected.layers) < TOLERANCE[dtype]
    finally:
        packed_linear.can_pack.cache_clear()


def test_the_packed_products_are_there():
    """They are torch's own, without a promise: a new torch that lacks them should not go unseen."""
    assert packed_linear.can_pack(torch.float32)
    assert packed_linear.can_pack(torch.bfloat16)
    assert packed_linear.can_quantise()


def test_the_reference_can_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv(KERNEL_VARIABLE, "reference")
    assert encoder_of(tmp_path, next(iter(SHAPES)), "float32").kernel.name == "reference"


@pytest.mark.compiler
def test_more_words_than_the_table_of_gates_has_room_for_give_the_same_bits(tmp_path, monkeypatch):
    shape = next(name for name in SHAPES if name not in WITHOUT_PROJECTION)
    for dtype in TOLERANCE:
        encoder = encoder_of(tmp_path, shape, dtype)
        expected = encoder.encode(SENTENCES).layers
        with monkeypatch.context() as patch:
            patch.setattr("elmo_model.kernels.cpu._MAX_TABLE_BYTES", 0)
            assert torch.equal(encoder.encode(SENTENCES).layers, expected)


@pytest.mark.compiler
def test_the_c_code_leaves_the_smallest_numbers_of_the_process_alone():
    """Some ways to compile it make whoever loads it flush them to zero, everywhere."""
    assert native.load().library is not None
    assert float(np.float64(5e-324) * np.float64(1.0)) > 0
    assert float((torch.tensor([1e-40]) * torch.tensor([1.0]))[0]) > 0


@pytest.mark.compiler
def test_a_folder_that_others_can_write_to_holds_no_code(tmp_path, monkeypatch):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv(native.CACHE_VARIABLE, str(folder))
    native.load.cache_clear()
    try:
        code = native.load()
        assert code.library is not None
        assert "for this process alone" in code.reason
        assert "must belong to this user and be writable by no other" in code.reason
        assert not list(folder.iterdir())
        monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path / "own"))
        native.load.cache_clear()
        assert native.load().library is not None
        assert [path.suffix for path in (tmp_path / "own").iterdir()] == [".so"]
    finally:
        native.load.cache_clear()


@pytest.mark.compiler
def test_without_a_home_the_code_is_built_for_the_process(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(native.Path, "home", no_home)
    monkeypatch.delenv(native.CACHE_VARIABLE, raising=False)
    native.load.cache_clear()
    try:
        code = native.load()
        assert code.library is not None
        assert "for this process alone: Could not determine home directory" in code.reason
    finally:
        native.load.cache_clear()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_is_no_number_is_seen_and_stays_in_its_own_sentence(dtype, tmp_path):
    shape = next(name for name in SHAPES if name not in WITHOUT_PROJECTION)
    encoder = encoder_of(tmp_path, shape, dtype)
    expected = encoder.encode(SENTENCES).layers
    # The first word of the last sentence, in the kept context-free vectors.
    encoder._cache._table[encoder._cache._rows["über"], 1] = float("nan")
    found = encoder.encode(SENTENCES).layers
    assert torch.equal(found[:, :-1], expected[:, :-1])
    forward, backward = found[1:, -1, : len(SENTENCES[-1])].chunk(2, dim=-1)
    assert torch.isnan(forward).all()
    assert torch.isnan(backward[:, 0]).all()
    assert torch.isfinite(backward[:, 1:]).all()


def test_a_compiler_that_fails_is_named_with_what_it_said(tmp_path, monkeypatch):
    compiler = tmp_path / "bad-cc"
    compiler.write_text("#!/bin/sh\necho cannot compile this >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv(native.COMPILER_VARIABLE, str(compiler))
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path / "cache"))
    native.load.cache_clear()
    try:
        assert "cannot compile this" in native.load().reason
        assert not list((tmp_path / "cache").iterdir())
    finally:
        native.load.cache_clear()
