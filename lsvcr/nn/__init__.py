"""Building blocks: plain tensors in, plain tensors out.

Letters of the shapes in every docstring of the package:

| letter | axis |
|---|---|
| B | rows of a batch (users, samples) |
| V | steps of the video history, oldest first |
| C | entries of the comment history, oldest first |
| L | steps of either history |
| T | tokens |
| D, d | width of the SR model |
| e | width of a text vector (the LLM embedding head's output) |
| h | width of the LLM |
| H | attention heads |
| K | keys of an attention, or candidates a row |
| M | rows gathered from all processes |
| N | rows of a catalogue or of a flat list |

Histories are padded on the right; a mask is bool with True = real.
"""
