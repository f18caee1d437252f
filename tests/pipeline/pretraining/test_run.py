"""A training from configuration to model directory, whole, interrupted, and gone on with."""

import json
import math
import os
import signal
import struct
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from elmo_model.bilm import BiLM
from elmo_model.directory import load_directory
from elmo_model.dropout import Dropout
from elmo_model.encoder import Encoder
from elmo_model.errors import ElmoError
from elmo_model.lm_batches import WordTable
from elmo_model.softmax_file import read_softmax
from elmo_model.vocabulary import Vocabulary
from pipeline.config import build
from pipeline.errors import ConfigError, CorruptFileError
from pipeline.pretraining.checkpoints import Checkpoints
from pipeline.pretraining.config import PretrainConfig
from pipeline.pretraining.crew import Alone
from pipeline.pretraining.held_out import HeldOutText
from pipeline.pretraining.loop import train
from pipeline.pretraining.model_output import check_output
from pipeline.pretraining.options import dropout_of, make_options
from pipeline.pretraining.run import finish, prepare, train_here
from pipeline.pretraining.schedule import learning_rate
from pipeline.storage import open_storage
from tests.elmo_model.plain_perplexity import plain_perplexity
from tests.pipeline.toy_corpus import toy_config, write_toy_corpus

# The kernels that measure add in another order than the modules.
PERPLEXITY_TOLERANCE = 1e-5

# Times in metrics are rounded to milliseconds.
ROUNDED_S = 0.001


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


def config_of(toy, directory, run=None, architecture=None, **training):
    values = toy_config(toy, directory, **training)
    values["run"] |= run or {}
    values["architecture"] |= architecture or {}
    return build(PretrainConfig, values, "test")


def trained(config, on_progress=lambda *progress: None):
    prepared = prepare(config)
    end = train_here(prepared.task, on_progress)
    return prepared, end


def losses_of(config):
    """Losses of every step, as written in the metrics."""
    storage = open_storage(config.output.work_directory)
    lines = storage.read_bytes("metrics.jsonl", 1 << 20).decode().splitlines()
    values = map(json.loads, lines)
    return {line["step"]: line["losses"] for line in values if "losses" in line}


def tensors_of(config):
    """All tensors of the newest checkpoint."""
    checkpoint = Checkpoints(open_storage(config.output.work_directory), "checkpoints").latest()
    return {
        f"{file}/{name}": value
        for file, values in checkpoint.tensors.items()
        for name, value in values.items()
    }


def test_held_out_perplexity_falls_and_the_saved_model_has_it(toy, tmp_path):
    config = config_of(toy, tmp_path / "model", max_steps=120, learning_rate=0.03)
    prepared, end = trained(config)
    before, after = end.curve[0], end.curve[-1]
    # Untrained, every word is as likely as any other.
    assert before.mean == pytest.approx(len(prepared.task.words), rel=0.05)
    assert after.forward < 8
    assert after.backward < 8
    record = finish(prepared, end)
    assert record["step_of_the_model"] == 120
    files = load_directory(tmp_path / "model")
    model = BiLM(files.options)
    model.load_state_dict(files.state)
    vocabulary = Vocabulary.read(tmp_path / "model/vocabulary.txt")
    assert vocabulary.words == prepared.task.words
    softmax = read_softmax(tmp_path / "model/softmax.safetensors", len(vocabulary), 8)
    held_out = HeldOutText(
        open_storage(config.output.work_directory),
        prepared.task.text.held_out,
        WordTable(vocabulary, 12),
        config.training.max_held_out_tokens,
    )
    wanted = plain_perplexity(model, softmax, held_out.batches())
    assert after.mean == pytest.approx(wanted.mean, rel=PERPLEXITY_TOLERANCE)


def test_the_model_directory_is_for_prediction_and_says_how_it_came_about(toy, tmp_path):
    config = config_of(toy, tmp_path / "model")
    finish(*trained(config))
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "options.json",
        "weights.safetensors",
        "vocabulary.txt",
        "softmax.safetensors",
        "training.json",
    }
    options = json.loads((tmp_path / "model/options.json").read_text())
    assert options["char_cnn"]["n_characters"] == 262
    record = json.loads((tmp_path / "model/training.json").read_text())
    assert record["seed"] == 1
    assert record["steps"] == 20
    assert record["tokens"] == 20 * 8 * 10
    assert record["train"]["documents"] + record["held_out"]["documents"] == 300
    assert [point["step"] for point in record["perplexity"]] == [0, 10, 20]
    assert PretrainConfig.model_validate(record["config"]) == config
    layers = Encoder.from_directory(tmp_path / "model").encode([["the", "cat"], ["river"]]).layers
    assert layers.shape == (3, 2, 2, 16)
    assert torch.isfinite(layers).all()


def test_equal_seeds_and_steps_give_equal_models(toy, tmp_path):
    configs = [
        config_of(toy, tmp_path / str(number), max_steps=6, state_reset_share=0.5, seed=seed)
        for number, seed in enumerate([1, 1, 2])
    ]
    for config in configs:
        trained(config)
    weights, same, different = map(tensors_of, configs)
    assert all(torch.equal(value, same[name]) for name, value in weights.items())
    assert any(not torch.equal(value, different[name]) for name, value in weights.items())


MODELS = {
    "characters": {},
    "words": {"token_input": "words"},
    "tied words": {"token_input": "words", "tied_softmax": True},
    "forward only": {"bidirectional": False},
    "dropout": {"dropout": 0.3},
    "every other dropout": {
        "token_input": "words",
        "dropout": 0.3,
        "dropout_kind": "variational",
        "weight_drop": 0.3,
        "word_dropout": 0.1,
    },
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", ["adagrad", "adamw"])
def test_a_training_that_was_killed_at_any_step_goes_on_as_if_it_had_not_been(
    toy, tmp_path, model, optimizer
):
    def config(name):
        return config_of(
            toy,
            tmp_path / name,
            architecture=MODELS[model],
            optimizer=optimizer,
            max_steps=11,
            accumulate_batches=2,
            state_reset_share=0.3,
            run={"checkpoint_steps": 3},
        )

    trained(config("whole"))
    broken = config("broken")

    class KilledError(Exception):
        pass

    def kill_at(last):
        def on_progress(step, *_):
            if step == last:
                raise KilledError

        return on_progress

    # Killed in the steps after a checkpoint, in the first ones, and at a checkpoint.
    for last in (2, 5, 6, 10):
        with pytest.raises(KilledError):
            train(prepare(broken).task, Alone(), torch.device("cpu"), kill_at(last))
    trained(broken)
    assert losses_of(broken) == losses_of(config("whole"))
    whole, resumed = tensors_of(config("whole")), tensors_of(broken)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("shuffle", ["sentences", "documents", "none"])
def test_an_interrupted_training_goes_on_over_the_end_of_a_pass(toy, tmp_path, shuffle):
    def config(name, steps):
        return config_of(toy, tmp_path / name, max_steps=steps, num_evaluations=1, shuffle=shuffle)

    # A pass of the toy corpus is about 150 steps.
    trained(config("whole", 330))
    for steps in (140, 290, 330):
        # The schedule looks at the share that is done, so it must not depend on the end.
        trained(config("parts", steps))
    assert losses_of(config("whole", 330)).keys() == losses_of(config("parts", 330)).keys()


def test_a_signal_ends_a_training_with_a_checkpoint_from_which_it_goes_on(toy, tmp_path):
    whole, config = (config_of(toy, tmp_path / name, max_steps=40) for name in ("whole", "stopped"))
    trained(whole)

    def stop(step, *_):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as raised:
        trained(config, stop)
    assert raised.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    prepared = prepare(config)
    assert prepared.resumed_step == 7
    train_here(prepared.task, lambda *progress: None)
    assert losses_of(config) == losses_of(whole)


def test_other_settings_do_not_go_on_with_a_training_and_the_message_names_them(toy, tmp_path):
    trained(config_of(toy, tmp_path / "model", max_steps=2))
    with pytest.raises(ConfigError, match=r"training\.batch_size was 8, is 4.*--overwrite"):
        prepare(config_of(toy, tmp_path / "model", max_steps=2, batch_size=4))
    longer = config_of(toy, tmp_path / "model", max_steps=4)
    assert prepare(longer).resumed_step == 2
    assert trained(longer)[1].step == 4
    assert prepare(longer, begin_anew=True).resumed_step is None


def test_the_checkpoint_of_another_model_is_refused(toy, tmp_path):
    config = config_of(toy, tmp_path / "model", max_steps=2)
    prepared, _ = trained(config)
    wider = replace(prepared.task.options.lstm, dim=32)
    task = replace(prepared.task, options=replace(prepared.task.options, lstm=wider))
    with pytest.raises(CorruptFileError, match="2 layers of 32 cells.*--overwrite"):
        train(task, Alone(), torch.device("cpu"))


def test_a_training_that_diverges_says_where_and_keeps_its_checkpoints(toy, tmp_path):
    good = config_of(toy, tmp_path / "model", max_steps=4)
    trained(good)
    config = good.model_copy(update={"training": good.training.model_copy(update={"max_steps": 9})})
    task = prepare(config).task
    training = task.config.training.model_copy(
        update={"learning_rate": 1e30, "clip_norm": None, "warmup_steps": 0}
    )
    task = replace(
        task,
        config=task.config.model_copy(update={"training": training}),
        options=replace(
            task.options, training=replace(task.options.training, all_clip_norm_val=None)
        ),
    )
    with pytest.raises(ElmoError, match=r"training diverged.*the checkpoint of step 4 is kept"):
        train(task, Alone(), torch.device("cpu"))
    assert prepare(config).resumed_step == 4
    assert math.isfinite(trained(config)[1].curve[-1].mean)


@pytest.mark.parametrize(("bias", "figure"), [(1e30, "inf"), (math.nan, "nan")])
def test_a_perplexity_that_is_no_number_says_where_and_keeps_the_last_good_checkpoint(
    toy, tmp_path, bias, figure
):
    config = config_of(toy, tmp_path / "model", max_steps=4, num_evaluations=2)
    trained(config)
    storage = open_storage(config.output.work_directory)
    checkpoints = Checkpoints(storage, "checkpoints")
    newest = checkpoints.latest()
    # What a diverged step leaves: a state that was never measured.
    newest.tensors["softmax"]["bias"][0] = bias
    checkpoints.write(5, {**newest.record, "curve": newest.record["curve"][:2]}, newest.tensors)
    longer = config.model_copy(
        update={"training": config.training.model_copy(update={"max_steps": 5})}
    )
    with pytest.raises(ElmoError, match=rf"step 5: .* mean {figure}, .*of step 2 is kept, in .*"):
        trained(longer)
    # What comes after it is of the way into divergence: the next run goes on from the good one.
    assert checkpoints.steps() == [2]
    lines = storage.read_bytes("metrics.jsonl", 1 << 20).decode()
    assert "Infinity" not in lines
    assert "NaN" not in lines
    lower = longer.training.model_copy(update={"learning_rate": 0.001})
    assert math.isfinite(trained(longer.model_copy(update={"training": lower}))[1].curve[-1].mean)


def test_the_newest_and_the_best_checkpoints_are_kept(toy, tmp_path):
    run = {"checkpoint_steps": 5, "keep_last": 2, "keep_best": 1}
    config = config_of(toy, tmp_path / "model", run=run, max_steps=40, num_evaluations=4)
    prepared, end = trained(config)
    steps = Checkpoints(open_storage(config.output.work_directory), "checkpoints").steps()
    best = min((point for point in end.curve if point.step), key=lambda point: point.mean).step
    assert steps == sorted({35, 40, best})
    assert finish(prepared, end)["step_of_the_model"] == best


def test_training_ends_when_its_time_is_used_up(toy, tmp_path):
    config = config_of(toy, tmp_path / "model", max_steps=10**9, max_seconds=0.5, num_evaluations=3)
    _, end = trained(config)
    assert end.is_done
    assert end.step < 10**6
    assert end.train_seconds >= 0.5
    assert end.curve[-1].step == end.step


def test_progress_tells_steps_time_tokens_loss_and_perplexity(toy, tmp_path):
    seen = []
    trained(
        config_of(toy, tmp_path / "model", max_steps=4), lambda *progress: seen.append(progress)
    )
    steps, seconds, tokens, notes = zip(*seen, strict=True)
    assert steps[0] == 0
    assert steps[-1] == 4
    assert list(seconds) == sorted(seconds)
    assert tokens[-1] == 4 * 8 * 10
    assert "held-out perplexity forward" in notes[0]
    for part in ("tokens/s", "ETA", "loss", "learning rate", "gradient", "backward"):
        assert part in notes[1]


def test_a_training_that_is_gone_on_with_tells_its_pace_at_once(toy, tmp_path):
    config = config_of(toy, tmp_path / "model", max_steps=6)
    trained(config)
    # As if its six steps had taken ten seconds: a few milliseconds more or less change nothing.
    checkpoints = Checkpoints(open_storage(config.output.work_directory), "checkpoints")
    newest = checkpoints.latest()
    checkpoints.write(6, {**newest.record, "train_seconds": 10.0}, newest.tensors)
    seen = []
    longer = config_of(toy, tmp_path / "model", max_steps=8, learning_rate=0.001)
    trained(longer, lambda *progress: seen.append(progress))
    steps, _, tokens, notes = seen[0]
    assert (steps, tokens) == (6, 6 * 8 * 10)
    assert "ETA" in notes
    rate = float(notes.split(" tokens/s")[0].replace(",", ""))
    assert rate == pytest.approx(tokens / 10.0, rel=0.1)


def test_metrics_hold_a_line_for_each_step_and_each_measurement(toy, tmp_path):
    config = config_of(toy, tmp_path / "model", max_steps=6, warmup_steps=3)
    trained(config)
    storage = open_storage(config.output.work_directory)
    lines = storage.read_bytes("metrics.jsonl", 1 << 20).decode().splitlines()
    values = [json.loads(line) for line in lines]
    steps = [line for line in values if "losses" in line]
    assert [line["step"] for line in steps] == list(range(1, 7))
    assert steps[0]["learning_rate"] < steps[2]["learning_rate"]
    assert all(line["gradient_norm"] > 0 and len(line["losses"]) == 2 for line in steps)
    assert [line["held_out"]["step"] for line in values if "held_out" in line] == [0, 3, 6]
    assert all(line["tokens_per_s"] > 0 for line in steps)
    measured_in_s = values[-1]["held_out"]["measured_in_s"]
    assert measured_in_s > 0
    assert steps[-1]["left_s"] >= 0
    # The measurement in the middle is over then, that at the end is still to come.
    middle = next(line["held_out"] for line in values if line.get("held_out", {}).get("step") == 3)
    assert steps[4]["left_s"] >= middle["measured_in_s"] - ROUNDED_S
    waited = [line["waited_seconds"] for line in steps]
    assert waited == sorted(waited)
    assert waited[-1] <= steps[-1]["train_seconds"] + 0.001


def test_the_time_that_text_was_waited_for_is_kept_over_an_interruption(toy, tmp_path):
    trained(config_of(toy, tmp_path / "model", max_steps=3))
    # As if the run before had waited for longer than the whole test takes.
    storage = open_storage(config_of(toy, tmp_path / "model").output.work_directory)
    checkpoints = Checkpoints(storage, "checkpoints")
    newest = checkpoints.latest()
    times = {"waited_seconds": 1000.0, "train_seconds": 2000.0}
    checkpoints.write(newest.step, {**newest.record, **times}, newest.tensors)
    prepared, after = trained(config_of(toy, tmp_path / "model", max_steps=5))
    assert 1000 <= after.waited_seconds < after.train_seconds
    record = finish(prepared, after)
    share = after.waited_seconds / after.train_seconds
    assert record["waited_for_text_share"] == pytest.approx(share, abs=1e-4)


def test_the_curves_are_drawn_at_the_end(toy, tmp_path):
    config = config_of(toy, tmp_path / "model", max_steps=30)
    finish(*trained(config))
    picture = Path(config.output.work_directory, "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    assert (width, height) == (1320, 840)
    assert len(set(picture)) > 200


def test_tensorboard_gets_the_same_numbers(toy, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = {"tensorboard_directory": str(tmp_path / "board"), "num_threads": 1}
    config = config_of(toy, tmp_path / "model", max_steps=6, run=run)
    _, end = trained(config)
    found = EventAccumulator(str(tmp_path / "board")).Reload()
    losses = {event.step: event.value for event in found.Scalars("loss/backward")}
    expected = {step: losses[1] for step, losses in losses_of(config).items()}
    assert losses == pytest.approx(expected)
    means = [event.value for event in found.Scalars("perplexity/mean")]
    assert means == pytest.approx([measurement.mean for measurement in end.curve])


def test_a_text_to_measure_with_may_be_given(toy, tmp_path):
    other = write_toy_corpus(tmp_path / "other.jsonl", num_documents=20)
    values = toy_config(toy, tmp_path / "model")
    values["held_out"] = {"path": str(other), "id_column": "id"}
    prepared = prepare(build(PretrainConfig, values, "test"))
    assert prepared.task.text.num_train_documents == 300
    assert prepared.task.text.num_held_out_documents == 20


def test_bfloat16_products_learn_nearly_the_same(toy, tmp_path):
    ends = [
        trained(config_of(toy, tmp_path / dtype, dtype=dtype, max_steps=40, learning_rate=0.03))[1]
        for dtype in ("float32", "bfloat16")
    ]
    exact, rounded = (end.curve[-1].mean for end in ends)
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("optimizer", ["adagrad", "adamw"])
def test_either_optimiser_and_the_full_softmax_learn(toy, tmp_path, optimizer):
    config = config_of(
        toy, tmp_path / "model", optimizer=optimizer, num_negative_samples=None, max_steps=30
    )
    prepared, end = trained(config)
    assert not prepared.task.options.training.sample_softmax
    assert end.curve[-1].mean < end.curve[0].mean


def test_the_number_of_threads_is_put_back(toy, tmp_path):
    before = torch.get_num_threads()
    run = {"num_threads": before + 1}
    trained(config_of(toy, tmp_path / "model", run=run, max_steps=1))
    assert torch.get_num_threads() == before


def test_a_small_vocabulary_gets_the_full_softmax(tmp_path):
    config = config_of("nowhere", tmp_path, num_negative_samples=8)
    assert make_options(config, 17).training.sample_softmax
    assert make_options(config, 17).training.n_negative_samples_batch == 8
    assert not make_options(config, 16).training.sample_softmax


def test_options_json_keeps_of_dropout_what_the_original_programs_know(tmp_path):
    dropout = {"dropout": 0.2, "dropout_kind": "variational", "weight_drop": 0.3}
    config = config_of("nowhere", tmp_path, architecture=dropout)
    assert dropout_of(config) == Dropout(0.2, "variational", 0.3, 0.0)
    plain = config_of("nowhere", tmp_path, architecture={"dropout": 0.2})
    assert make_options(config, 17).to_dict() == make_options(plain, 17).to_dict()
    assert make_options(config, 17).to_dict()["dropout"] == 0.2


def test_the_learning_rate_rises_then_falls_to_a_fiftieth(tmp_path):
    def training(**values):
        return config_of("nowhere", tmp_path, **values).training

    linear = training(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(linear, step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert learning_rate(linear, 10, 0.5) == pytest.approx(0.51)
    assert learning_rate(linear, 10, 1.0) == pytest.approx(0.02)
    cosine = training(learning_rate=1.0, warmup_steps=0, learning_rate_decay="cosine")
    found = [learning_rate(cosine, 10, done) for done in (0, 0.25, 0.5, 1)]
    assert found == pytest.approx([1, 0.02 + 0.98 * 0.853553, 0.51, 0.02], rel=1e-5)
    constant = training(learning_rate_decay="none", warmup_steps=0)
    assert learning_rate(constant, 0, 0.7) == constant.initial_learning_rate


def test_a_short_held_out_text_is_measured_in_smaller_batches(toy, tmp_path):
    _, end = trained(config_of(toy, tmp_path / "model", held_out_share=1e-9, max_steps=1))
    assert math.isfinite(end.curve[-1].mean)


def test_an_older_model_is_replaced_whole_and_only_when_asked(toy, tmp_path):
    directory = tmp_path / "model"
    config = config_of(toy, directory, max_steps=1)
    check_output(str(directory), overwrite=False)
    done = trained(config)
    finish(*done)
    (directory / "left.txt").write_text("of an older version")
    with pytest.raises(ConfigError, match="holds a model already; give --overwrite"):
        check_output(str(directory), overwrite=False)
    check_output(str(directory), overwrite=True)
    finish(*done)
    assert not (directory / "left.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.training"}


def test_a_failed_save_leaves_the_older_model_and_no_scraps(toy, tmp_path, monkeypatch):
    config = config_of(toy, tmp_path / "model", max_steps=1)
    done = trained(config)
    finish(*done)
    before = (tmp_path / "model/weights.safetensors").read_bytes()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("pipeline.pretraining.model_output.write_softmax", fail)
    with pytest.raises(OSError, match="disk full"):
        finish(*done)
    assert (tmp_path / "model/weights.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.training"}


def test_a_directory_of_other_files_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"no pretrained model, such as letter\.txt"):
        check_output(str(tmp_path), overwrite=True)
    with pytest.raises(ConfigError, match="is a file"):
        check_output(str(tmp_path / "letter.txt"), overwrite=True)


def test_training_in_another_thread_leaves_signals_alone(toy, tmp_path):
    ends = []
    config = config_of(toy, tmp_path / "model", max_steps=2)
    thread = threading.Thread(target=lambda: ends.append(trained(config)[1].step))
    thread.start()
    thread.join()
    assert ends == [2]
