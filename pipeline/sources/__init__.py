"""One reader per input format, all producing the same document tables."""
