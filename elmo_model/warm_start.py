"""The warm start: the state after a fixed text, from which every sentence can start.

Released models were trained with a state that ran on from sentence to sentence and was never zero
again. A zero state is thus a little strange to them; the state after some ordinary text is not. It
is the same for every sentence, so vectors still depend on the sentence alone.

The text is part of the result: a changed word would change every vector made with a warm start.
Tokens are split as in the released models' corpus. Knows no model.
"""

from __future__ import annotations

WARM_START_TEXT = (
    "The committee met on Tuesday morning to discuss the plan for the new bridge .",
    '" We have waited long enough , " said the mayor , who had promised it three years ago .',
    "Work is expected to begin in March and will cost about $ 4.2 million .",
    "Some people in the town do n't agree : they fear more traffic and more noise .",
    "A teacher asked whether children could still cross the river on foot .",
    "The engineer answered that there would be a path on both sides , with lights at night .",
    "Later that day it rained , and the streets were empty by six o'clock .",
    "The decision will be made next week .",
)
"""Sentences of the warm start, in order; a single space separates tokens."""
