"""The errors of the model: each class says what is wrong. Knows nothing else.

ElmoError
├── ModelFileError         a model file is missing, damaged or does not fit the others
│   └── OptionsError       options.json holds a value that no biLM can have
├── VocabularyError        a vocabulary that cannot be read or does not hold what it must
├── DeviceError            the device or the arithmetic asked for is not available here
└── LayerChoiceError       the model has no such layer, or the mix does not fit its layers

A message says where, what was expected, what was found and what to do.
"""


class ElmoError(Exception):
    """Base of all errors that the model raises on purpose."""


class ModelFileError(ElmoError):
    """A model file is missing, damaged, of an unsafe kind or does not fit the other files."""


class OptionsError(ModelFileError):
    """A key of options.json is missing or has a value that no biLM can have."""


class VocabularyError(ElmoError):
    """A vocabulary cannot be read, written or used: a mark is missing, a word occurs twice."""


class DeviceError(ElmoError):
    """The device, or the arithmetic asked for on it, is not available in this process."""


class LayerChoiceError(ElmoError):
    """A choice of layers that is unknown, or that does not fit the model's layers."""
