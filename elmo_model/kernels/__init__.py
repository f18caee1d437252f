"""Ways to run the biLM's LSTM stacks: the reference and what must give the same numbers faster."""
