"""The encoder's graph against the model it was made of, for any batch, lengths, padding and shape."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from lsvcr.export.attention import own_shift
from lsvcr.export.encoder import encoder_graph
from lsvcr.export.hiding import HIDDEN
from lsvcr.export.quantise import quantised
from lsvcr.models.rank import RankModel
from lsvcr.models.sr import SRModel
from lsvcr.nn.attention import MultiHeadAttention
from lsvcr.nn.similarity import unit
from lsvcr.schema import Task
from tests.models.sr_world import LENGTHS, N_VIDEOS, make_histories, make_model

LONGEST = 9
SHAPES = [
    {},
    {"layers": 1},
    {"layers": 3, "heads": 4},
    {"heads": 1, "inner": 5},
    {"use_comments": False},
    {"n_videos": 0},
    {"max_position": 30},
]
BOTH = pytest.mark.parametrize("task", [Task.REC, Task.COMM_RANK])


def rank_model(task: Task, **changes: object) -> RankModel:
    sr = make_model(dtype=torch.float32, **changes)
    return RankModel(sr, task, None, None, n_videos=N_VIDEOS, n_comments=3).eval()


def session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def both(model: RankModel, graph: bytes, lengths, extra: int = 0, padding: float = math.nan):
    """(expected, found) user vectors of histories padded by `extra` more steps that hold `padding`."""
    sr: SRModel = model.sr
    h = make_histories(lengths, extra, dtype=torch.float32)
    drawn = [np.random.default_rng((5, user)).normal(size=sr.hidden) for user in range(len(lengths))]
    watched = torch.tensor(np.stack(drawn), dtype=torch.float32)
    expected = unit(sr.rec_vectors(h)) if model.task is Task.REC else unit(sr.comm_rank_vectors(h, watched))
    shown = h.video_comment if sr.use_comments else torch.zeros_like(h.video_comment)
    sides = {
        "video": (h.video_title, shown, h.video_ids, h.video_mask),
        "comment": (h.comment_title, h.comment_comment, h.comment_video_ids, h.comment_mask),
    }
    feed = {} if model.task is Task.REC else {"watched": watched.numpy()}
    for name, (title, comment, ids, mask) in sides.items():
        steps = sr.video_vectors(sr.merge(torch.cat([title, comment], dim=-1)), ids)
        feed[name] = steps.masked_fill(~mask.unsqueeze(-1), padding).numpy()
        feed[f"{name}_mask"] = mask.numpy()
        if not mask.shape[1]:  # the graph wants one step at least
            feed[name] = np.full((len(lengths), 1, sr.hidden), padding, dtype=np.float32)
            feed[f"{name}_mask"] = np.zeros((len(lengths), 1), dtype=bool)
    return expected.numpy(), session(graph).run(None, feed)[0]


@BOTH
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_graph_equals_the_model_whatever_its_shape(task: Task, changes: dict) -> None:
    model = rank_model(task, **changes)
    graph = encoder_graph(model, LONGEST, LONGEST)
    for extra in (0, 3):
        expected, found = both(model, graph, LENGTHS, extra)
        assert found.shape == expected.shape and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@BOTH
@pytest.mark.parametrize(
    "lengths",
    [
        [(0, 0)],
        [(1, 0)],
        [(0, 1)],
        [(1, 1)],
        [(9, 9)],
        [(0, 0), (0, 0)],
        [(9, 0), (0, 9), (1, 9), (9, 1)],
        [(u % 10, (u * 7) % 10) for u in range(70)],
    ],
    ids=lambda lengths: str(lengths[:4]),
)
def test_graph_equals_the_model_for_any_batch_and_lengths(task: Task, lengths) -> None:
    model = rank_model(task)
    expected, found = both(model, encoder_graph(model, LONGEST, LONGEST), lengths)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@BOTH
def test_histories_of_different_lengths_have_tables_of_their_own(task: Task) -> None:
    model = rank_model(task)
    expected, found = both(model, encoder_graph(model, 9, 4), [(9, 4), (2, 1), (0, 3)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@BOTH
def test_a_user_has_the_same_vector_alone_and_in_a_batch(task: Task) -> None:
    model = rank_model(task)
    graph = encoder_graph(model, LONGEST, LONGEST)
    together = both(model, graph, LENGTHS)[1]
    for place in range(len(LENGTHS)):
        # `make_histories` gives user u what it gives him in any batch: those before him are cut off again.
        alone = both(model, graph, [(0, 0)] * place + [LENGTHS[place]])[1][-1]
        np.testing.assert_allclose(alone, together[place], rtol=0, atol=1e-6)


@BOTH
@pytest.mark.parametrize("times", [0.01, 5, 40])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_what_is_hidden_stays_hidden_however_high_the_scores_are(
    task: Task, heads: int, times: float
) -> None:
    model = rank_model(task, heads=heads)
    with torch.no_grad():
        for module in model.sr.modules():
            if isinstance(module, MultiHeadAttention):
                module.query.weight *= times
                module.query.bias *= times
                module.key.bias *= times
        model.sr.rec_pooling.score.weight *= times
    expected, found = both(model, encoder_graph(model, LONGEST, LONGEST), LENGTHS, extra=2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@BOTH
def test_hidden_scores_leave_no_denormal_shares(task: Task) -> None:
    model = rank_model(task)
    limits = [
        numpy_helper.to_array(constant)
        for constant in onnx.load_from_string(encoder_graph(model, LONGEST, LONGEST)).graph.initializer
    ]
    lowest = [limit.min() for limit in limits if limit.dtype == np.float32 and limit.max() > 1e38]
    if task is Task.COMM_RANK:  # of the watched video's scores no bound is known
        lowest.remove(HIDDEN)
    # exp of -87.4 and less is denormal, or 0 by way of one.
    assert len(lowest) >= 3 and all(2 * low + 30 > -87 and low < -30 for low in lowest), lowest


@BOTH
def test_values_that_take_the_states_away_leave_their_bias_to_be_added(task: Task) -> None:
    model = rank_model(task)
    with torch.no_grad():
        for side in (model.sr.video_encoder, model.sr.comment_encoder):
            own = side[0].attention
            own.output.weight.copy_(torch.eye(model.sr.hidden))
            own.value.weight.copy_(-torch.eye(model.sr.hidden))
    assert not own_shift(own).any()
    expected, found = both(model, encoder_graph(model, LONGEST, LONGEST), LENGTHS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@BOTH
def test_the_same_model_gives_the_same_bytes(task: Task) -> None:
    assert encoder_graph(rank_model(task), 9, 9) == encoder_graph(rank_model(task), 9, 9)


@BOTH
def test_the_graph_stays_small(task: Task) -> None:
    # Norms, GELU and softmax are one node each; a traced graph of this model has about 200.
    graph = onnx.load_from_string(encoder_graph(rank_model(task), 9, 9)).graph
    assert len(graph.node) < 125
    assert {node.domain for node in graph.node} == {""}, "no operation of one runtime alone"


@BOTH
def test_eight_bits_stay_near(task: Task) -> None:
    torch.manual_seed(0)
    sr = SRModel(hidden=32, inner=64, text_width=6, max_position=9, n_videos=12)
    for module in sr.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.bias, std=0.1)
    model = RankModel(sr, task, None, None, n_videos=12, n_comments=3).eval()
    graph = encoder_graph(model, 9, 9)
    small = quantised(graph)
    assert len(small) < len(graph) * 0.6
    steps = np.random.default_rng(0).normal(size=(6, 5, 32)).astype(np.float32)
    mask = np.arange(5) < np.array([5, 3, 1, 0, 2, 5])[:, None]
    feed = {"video": steps, "video_mask": mask, "comment": steps[::-1].copy(), "comment_mask": mask}
    if task is Task.COMM_RANK:
        feed["watched"] = steps[:, 0]
    exact, near = (session(one).run(None, feed)[0] for one in (graph, small))
    cosines = (exact * near).sum(axis=1)
    assert cosines.min() > 0.99 and not np.array_equal(exact, near)
