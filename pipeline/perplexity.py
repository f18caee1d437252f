"""Measure the perplexity of a language model on a corpus, which is streamed through it.

One process. What is held of the text is a batch of documents, the rows' sentences, and, where the
number of rows is left open, the beginning of the text that decides it. Knows no jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from time import monotonic

import numpy as np

from elmo_model.errors import ElmoError
from elmo_model.language_model import LanguageModel
from elmo_model.lm_batches import Ids, WordTable, packed_batches
from elmo_model.packed_text import PackedText, carried_texts, sentence_texts
from elmo_model.perplexity import LossSums, Perplexity
from elmo_model.perplexity import measure as measure_texts
from elmo_model.vocabulary import Vocabulary
from pipeline.errors import EmptySourceError
from pipeline.language_model_files import LanguageModelFiles
from pipeline.perplexity_config import EvaluationConfig, PerplexityConfig
from pipeline.rejected import RejectedTally, describe_row
from pipeline.sentence_stream import SentenceStream
from pipeline.sources.discover import Discovery

# The original's evaluation reads so many rows side by side.
MAX_ROWS = 256
# A row drops about 20 predictions at the end of the text, the rest of one sentence: 1 % of this.
PREDICTIONS_PER_ROW = 2000
# Positions that go through the model at once, and steps at most: few rows may be long.
_POSITIONS = {"cpu": 8192, "cuda": 65536}
_MAX_STEPS = 256
# Sentences that are sorted by length together.
_WINDOWS = 8


@dataclass(frozen=True)
class MeasuredModel:
    """A model that is ready to be measured, and the words that it predicts."""

    model: LanguageModel
    vocabulary: Vocabulary


@dataclass(frozen=True)
class PerplexityReport:
    """Perplexity of a corpus, and what was counted of it.

    `num_cut_tokens` were not read, since their documents exceed `text.max_document_tokens`.
    `num_dropped` are predictions of one direction that did not fill the last batch,
    `unknown_share` is that of `<UNK>` among the targets that were counted. `batch_size` is None
    where each sentence was read on its own. `seconds` is the time of reading and measuring.
    """

    perplexity: Perplexity
    num_documents: int
    num_sentences: int
    num_tokens: int
    rejected: RejectedTally
    num_cut_tokens: int
    num_dropped: int
    unknown_share: float
    batch_size: int | None
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Predictions of one direction per second."""
        return self.perplexity.num_predictions / self.seconds if self.seconds else 0.0


def load_measured_model(config: PerplexityConfig) -> MeasuredModel:
    """Read the configured model, its vocabulary and its softmax.

    Raises:
        ModelFileError: a file is missing, wrong, or not of this model.
        ConfigError: a configured file does not exist.
        DeviceError: the device or its arithmetic is not available.
        StorageError: a remote file cannot be fetched.
    """
    files = LanguageModelFiles(config.model)
    vocabulary = Vocabulary.read(files.need_vocabulary("to know which words it predicts"))
    softmax = files.read_softmax(len(vocabulary))
    model = LanguageModel(files.bilm, softmax, device=config.model.device, dtype=config.model.dtype)
    return MeasuredModel(model, vocabulary)


def measure(
    config: PerplexityConfig,
    measured: MeasuredModel,
    discovery: Discovery,
    on_progress: Callable[[int, int, str], None] = lambda *progress: None,
) -> PerplexityReport:
    """Stream the corpus through the model, in the order in which it is read.

    Args:
        config: source, text and how to read it.
        measured: of `load_measured_model`.
        discovery: of `config.source`.
        on_progress: gets the documents read and the predictions counted by now, and the
            perplexity so far.

    Raises:
        EmptySourceError: the corpus holds no document with a token.
        ElmoError: the text does not fill one batch, or a loss is not finite.
        SourceError: the source cannot be read as configured.
        StorageError: the store failed.
    """
    started = monotonic()
    model, vocabulary = measured.model, measured.vocabulary
    options = model.options
    char_cnn = options.char_cnn
    table = WordTable(vocabulary, char_cnn.max_characters_per_token if char_cnn else None)
    stream = SentenceStream(discovery, table, config.evaluation.max_tokens)
    sequences = stream.sequences(config.source, config.text)
    batch_size = None
    if config.evaluation.state == "carried":
        batch_size, sequences = choose_rows(config.evaluation.batch_size, sequences)
    num_unknown = 0

    def note(text: PackedText, sums: LossSums) -> None:
        nonlocal num_unknown
        num_unknown += int(np.count_nonzero(text.targets_SN == vocabulary.unknown_id))
        on_progress(stream.num_documents, sums.num_predictions, sums.perplexity().describe())

    sums = measure_texts(
        model,
        _texts(config.evaluation, model, batch_size, sequences, table),
        carries_state=batch_size is not None,
        on_text=note,
    )
    _check_enough(config, stream, sums, batch_size)
    result = sums.perplexity()
    if not result.is_finite:
        raise ElmoError(
            f"the perplexity of {sums.num_predictions} predictions is {result.describe()}: the "
            "softmax or the weights are damaged or diverged, or model.dtype cannot hold the "
            "values; try float32"
        )
    return PerplexityReport(
        perplexity=result,
        num_documents=stream.num_documents,
        num_sentences=stream.num_sentences,
        num_tokens=stream.num_tokens,
        rejected=stream.rejected,
        num_cut_tokens=stream.num_cut_tokens,
        num_dropped=stream.num_predictions - sums.num_predictions,
        unknown_share=num_unknown / (options.num_directions * sums.num_predictions),
        batch_size=batch_size,
        seconds=monotonic() - started,
    )


def choose_rows(batch_size: int | None, sequences: Iterator[Ids]) -> tuple[int, Iterator[Ids]]:
    """How many rows of text to read side by side, and the same sentences again.

    Args:
        batch_size: the configured number; None looks at the beginning of the text.
        sequences: sentences with their marks; as many are read as can change the answer.
    """
    if batch_size is not None:
        return batch_size, sequences
    beginning: list[Ids] = []
    num_predictions = 0
    for sequence in sequences:
        beginning.append(sequence)
        num_predictions += len(sequence) - 1
        if num_predictions >= MAX_ROWS * PREDICTIONS_PER_ROW:
            break
    rows = min(num_predictions // PREDICTIONS_PER_ROW, len(beginning), MAX_ROWS)
    return max(rows, 1), chain(beginning, sequences)


def _texts(
    evaluation: EvaluationConfig,
    model: LanguageModel,
    batch_size: int | None,
    sequences: Iterable[Ids],
    table: WordTable,
) -> Iterator[PackedText]:
    positions = _POSITIONS.get(model.device.type, _POSITIONS["cpu"])
    bidirectional = model.options.bidirectional
    if batch_size is None:
        return sentence_texts(sequences, table, positions, _WINDOWS * positions, bidirectional)
    if evaluation.unroll_steps is not None:
        batches = packed_batches(
            sequences, table, batch_size, evaluation.unroll_steps, bidirectional
        )
        return map(PackedText.of_batch, batches)
    max_steps = max(1, min(_MAX_STEPS, positions // batch_size))
    return carried_texts(sequences, table, batch_size, max_steps, bidirectional)


def _check_enough(
    config: PerplexityConfig, stream: SentenceStream, sums: LossSums, batch_size: int | None
) -> None:
    where = ", ".join(config.source.paths)
    if not stream.num_sentences:
        why = "give text, or name another source"
        if stream.rejected.total:
            first = describe_row(stream.rejected.shown[0])
            why = (
                f"since all {stream.rejected.total:,} rows were rejected "
                f"({stream.rejected.describe()}), the first as {first}; mend the input"
            )
        raise EmptySourceError(
            f"{where}: expected text to measure with, found no document with a token; {why}"
        )
    if not sums.num_predictions:
        steps = config.evaluation.unroll_steps or 1
        raise ElmoError(
            f"{where}: the text does not fill one batch of {batch_size} rows and {steps} steps: it "
            f"has {stream.num_predictions} predictions in {stream.num_sentences} sentences. Lower "
            "evaluation.batch_size or evaluation.unroll_steps, leave them out, or give more text"
        )
