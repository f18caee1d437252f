"""Tokenisers: each turns normalised text into sentences of tokens with their places."""
