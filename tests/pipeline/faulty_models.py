"""Models that harm the process they run in when they meet certain words. Picklable loaders."""

import os
import signal
import time
from dataclasses import dataclass

import numpy as np

from pipeline.backend import EncoderDescription
from tests.integration.stand_in import DIM, WordModel


def segfault():
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    os._exit(66)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(3600)


def fail():
    raise RuntimeError("a word that breaks the model")


HARM = {"segfault": segfault, "leave": leave, "kill": kill, "hang": hang, "fail": fail}


def note(path, what):
    """Append a line to a file that several processes write."""
    with open(path, "a") as file:
        file.write(f"{what} {os.getpid()} {time.time()}\n")


class FaultyModel(WordModel):
    """As WordModel, but words of `harm` do harm; each window is noted in a file."""

    def __init__(self, loader):
        super().__init__(loader.level)
        self._loader = loader

    def vectors(self, window):
        note(self._loader.journal, f"window {len(window.sentences_per_document)}")
        for word, how in self._loader.harm:
            if word in [window.words[index] for index in np.unique(window.word_ids)]:
                HARM[how]()
        time.sleep(self._loader.seconds_per_document * len(window.sentences_per_document))
        return super().vectors(window)


@dataclass(frozen=True)
class FaultyLoader:
    """Makes the model in whatever process calls it; `on_load` does harm there."""

    level: str
    journal: str
    harm: tuple = ()
    on_load: str | None = None
    seconds_per_document: float = 0.0

    def __call__(self):
        note(self.journal, "load")
        if self.on_load is not None:
            HARM[self.on_load]()
        return FaultyModel(self)


@dataclass(frozen=True)
class FaultyBackend:
    """Stands in for ELMo, with some words that do harm."""

    journal: str
    harm: tuple = ()
    on_load: str | None = None
    seconds_per_document: float = 0.0

    def describe(self, config):
        return EncoderDescription(f"words-{config.vectors.level}", {}, DIM, ("vector",))

    def loader(self, config, num_threads):
        return FaultyLoader(config.vectors.level, **vars(self))
