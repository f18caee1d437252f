"""Search indexes that are fed from snapshots, one file each."""
