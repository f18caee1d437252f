"""The errors of the pipeline: each class says who can act on it. Knows nothing else.

PipelineError                  exit 1
├── ConfigError                exit 2   the user changes the configuration or the command line
│   ├── UnsafeStoreError       exit 2   the store lets a second create win: another store is needed
│   └── CompatibilityError     exit 2   vectors of another encoder: build the index anew
├── SourceError                exit 3   the input cannot be read: the user mends or excludes it
│   ├── EmptySourceError       exit 3   there is no input at all: broken upstream, or a wrong path
│   └── TooManyRejectsError    exit 3   more rows were rejected than the configuration allows
├── StorageError               exit 4   the store failed: try again later
│   ├── MissingFileError       exit 4   no such file: the caller knows what it means
│   └── UnknownOutcomeError    exit 4   a write may or may not have happened: look before acting
├── AlreadyExistsError         exit 1   put-if-absent found a file: the caller lost the race
├── CommitConflictError        exit 5   another run committed first: read again, decide again
├── CommitUnknownError         exit 6   the commit's outcome is unknown: look before acting
├── CorruptFileError           exit 7   stored bytes differ from what the manifest promises: rebuild
├── ClusterError               exit 8   the cluster cannot hold the plan: more nodes or fewer actors
├── MissingChangesError        exit 9   the change feed has a gap: read the whole snapshot instead
└── RebuildNeededError         exit 1   a search index cannot take these changes: feed it everything

A message says where, what was expected, what was found and what to do.
"""


class PipelineError(Exception):
    """Base of all errors that a job reports without a traceback."""

    exit_code = 1


class ConfigError(PipelineError):
    """The configuration or the command line is wrong; only the user can change it."""

    exit_code = 2


class UnsafeStoreError(ConfigError):
    """The object store does not honour put-if-absent, so commits there could be lost."""


class CompatibilityError(ConfigError):
    """Vectors of different encoders would meet, and cannot be compared."""


class SourceError(PipelineError):
    """The corpus cannot be read as configured; nothing was written."""

    exit_code = 3


class EmptySourceError(SourceError):
    """The source is missing or holds no document; nothing was written."""


class TooManyRejectsError(SourceError):
    """More rows were rejected than the configuration allows; nothing was committed."""


class StorageError(PipelineError):
    """The store failed in all attempts; the same call may succeed later."""

    exit_code = 4


class MissingFileError(StorageError):
    """The store answered that there is no such file."""


class UnknownOutcomeError(StorageError):
    """A write failed in a way that leaves open whether the store carried it out."""


class AlreadyExistsError(PipelineError):
    """A put-if-absent found that the file exists; what is stored was left alone."""


class CommitConflictError(PipelineError):
    """Another run committed this snapshot number first; nothing of either run is lost."""

    exit_code = 5


class CommitUnknownError(PipelineError):
    """The store did not say whether the commit happened; look at the snapshot before acting."""

    exit_code = 6


class CorruptFileError(PipelineError):
    """A stored file or manifest is not what was written; restore it or embed again."""

    exit_code = 7


class ClusterError(PipelineError):
    """The Ray cluster lacks what the plan needs, or nothing on it moves any more."""

    exit_code = 8


class MissingChangesError(PipelineError):
    """The change feed between two snapshots is gone; read the newer one as a whole."""

    exit_code = 9


class RebuildNeededError(PipelineError):
    """A search index cannot take these changes as it is; feed it a whole snapshot."""
