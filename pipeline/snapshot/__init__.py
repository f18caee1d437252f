"""Immutable numbered snapshots: what they are, how they are committed, read and compared."""
