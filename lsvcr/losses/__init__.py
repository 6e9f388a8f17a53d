"""Losses: pure functions of tensors, one idea a file. Logits are float32.

A loss is the mean over this process's rows. With equally many rows on every process the average of
the processes' losses is the loss of the joined batch.
"""
