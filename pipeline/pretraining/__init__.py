"""Pretraining a biLM: text prepared once, streamed from any position, learned from by workers."""
