"""The data path between a corpus and a committed snapshot of vectors."""
