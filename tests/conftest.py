"""Fixtures that all tests share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models and corpora beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} with the reference models and corpora is missing")
    return SHARED
