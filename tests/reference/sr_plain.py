"""The SR model once more, written from its specification with explicit loops, to compare tensors with.

One user at a time, no padding, no masks, no batch: NumPy float64. Shares no code with the package. Parameters
come as a dict by the package's names, which are the only thing the two have in common.
"""

import math

import numpy as np

Parameters = dict[str, np.ndarray]
Entry = tuple[np.ndarray, np.ndarray, int]
"""Title vector (d,), comment vector (d,), video id."""


def rec_user(
    p: Parameters, heads: int, videos: list[Entry], comments: list[Entry], positions=None
) -> np.ndarray:
    """Additive-attention pooling of the video states."""
    return _pool(p, states(p, heads, videos, comments, positions)[0])


def rec_other(
    p: Parameters, heads: int, videos: list[Entry], comments: list[Entry], positions=None
) -> np.ndarray:
    """The same pooling of the comment states."""
    return _pool(p, states(p, heads, videos, comments, positions)[1])


def comm_rank_user(p, heads, videos, comments, watched: np.ndarray, positions=None) -> np.ndarray:
    """The watched video asks the comment states."""
    answers = states(p, heads, videos, comments, positions)[1]
    return _attention_block(p, "comm_rank_attention", heads, [watched], [answers])[0]


def comm_rank_other(p, heads, videos, comments, watched: np.ndarray, positions=None) -> np.ndarray:
    """The watched video asks the video states."""
    answers = states(p, heads, videos, comments, positions)[0]
    return _attention_block(p, "comm_rank_attention", heads, [watched], [answers])[0]


def states(p, heads, videos, comments, positions=None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The states of both histories after the cross layers and the merge."""
    own_video = _history(p, "video", heads, videos, None if positions is None else positions[0])
    own_comment = _history(p, "comment", heads, comments, None if positions is None else positions[1])
    out_video, out_comment = [], []
    for own, other, side, out in (
        (own_video, own_comment, "video", out_video),
        (own_comment, own_video, "comment", out_comment),
    ):
        crossed = _attention_block(p, f"{side}_cross.attention", heads, own, [other] * len(own))
        for state, cross in zip(own, crossed, strict=True):
            cross = _feed_forward(p, f"{side}_cross.feed_forward", cross)
            out.append(_linear(p, f"{side}_join", np.concatenate([state, cross])))
    return out_video, out_comment


def _history(p: Parameters, side: str, heads: int, entries: list[Entry], positions) -> list[np.ndarray]:
    """Entry vectors through the causal encoder; an empty history is one entry without text and id."""
    width = p["merge.bias"].shape[0]
    if not entries:
        entries = [(np.zeros(width), np.zeros(width), 0)]
    steps = []
    for place, (title, comment, video) in enumerate(entries):
        position = place if positions is None or len(positions) == 0 else int(positions[place])
        x = _linear(p, "merge", np.concatenate([title, comment])) + p[f"{side}_position.weight"][position]
        if "gate" in p:
            x = x + p["gate"][0] * p["video_id.weight"][video]
        steps.append(_layer_norm(p, f"{side}_norm", x))
    layer = 0
    while f"{side}_encoder.{layer}.attention.query.weight" in p:
        name = f"{side}_encoder.{layer}"
        visible = [steps[: i + 1] for i in range(len(steps))]
        steps = _attention_block(p, f"{name}.attention", heads, steps, visible)
        steps = [_feed_forward(p, f"{name}.feed_forward", step) for step in steps]
        layer += 1
    return steps


def _attention_block(
    p, name, heads, queries: list[np.ndarray], visible: list[list[np.ndarray]]
) -> list[np.ndarray]:
    """For each query its own list of visible states; output projection, residual, LayerNorm."""
    out = []
    for query, others in zip(queries, visible, strict=True):
        q = _linear(p, f"{name}.query", query)
        keys = [_linear(p, f"{name}.key", other) for other in others]
        values = [_linear(p, f"{name}.value", other) for other in others]
        size = len(q) // heads
        context = np.zeros_like(q)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            logits = [float(q[part] @ key[part]) / math.sqrt(size) for key in keys]
            for weight, value in zip(softmax(logits), values, strict=True):
                context[part] += weight * value[part]
        out.append(_layer_norm(p, f"{name}.norm", query + _linear(p, f"{name}.output", context)))
    return out


def _feed_forward(p: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    inner = _gelu(_linear(p, f"{name}.up", x))
    return _layer_norm(p, f"{name}.norm", x + _linear(p, f"{name}.down", inner))


def _pool(p: Parameters, steps: list[np.ndarray]) -> np.ndarray:
    logits = []
    for step in steps:
        inner = _gelu(_layer_norm(p, "rec_pooling.norm", _linear(p, "rec_pooling.inner", step)))
        logits.append(float(_linear(p, "rec_pooling.score", inner)[0]))
    total = np.zeros_like(steps[0])
    for weight, step in zip(softmax(logits), steps, strict=True):
        total += weight * step
    return total


def softmax(logits: list[float]) -> list[float]:
    """Probabilities of a list of logits."""
    top = max(logits)
    powers = [math.exp(logit - top) for logit in logits]
    return [power / sum(powers) for power in powers]


def _linear(p: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    return p[f"{name}.weight"] @ x + p.get(f"{name}.bias", 0.0)


def _layer_norm(p: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean()
    return centred / math.sqrt(float((centred**2).mean()) + 1e-8) * p[f"{name}.weight"] + p[f"{name}.bias"]


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
