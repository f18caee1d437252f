"""ELMo's bidirectional language model in torch. Knows no Ray, Arrow or object storage."""
