"""Steps that may not be seen, in the graphs of SASRec and BERT4Rec: hidden whatever the scores, and not far below."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from lsvcr.baselines.bert4rec import BERT4Rec, Bert4RecSettings
from lsvcr.baselines.sasrec import SASRec, SasrecSettings
from lsvcr.export import bert4rec, sasrec
from lsvcr.export.hiding import HIDDEN, Reach, lowest, reach_of_norm, reach_of_rows
from lsvcr.serving.bundle_write import Part

LENGTHS = [3, 6, 0, 1, 5, 2]
KINDS = pytest.mark.parametrize("kind", ["sasrec", "bert4rec", "bert4rec with BERT's ends"])


def model_of(kind: str, **changes: object) -> SASRec | BERT4Rec:
    torch.manual_seed(0)
    if kind == "sasrec":
        return SASRec(20, 6, **{**SasrecSettings().shape(), **changes}).eval()
    ends = "bert" if kind != "bert4rec" else "plain"
    return BERT4Rec(20, 6, ends=ends, **{**Bert4RecSettings().shape(), **changes}).eval()


def part_of(model: SASRec | BERT4Rec) -> Part:
    return sasrec.part(model) if isinstance(model, SASRec) else bert4rec.part(model)


@torch.no_grad()
def both(model: SASRec | BERT4Rec) -> tuple[np.ndarray, np.ndarray]:
    """What the model says of histories of `LENGTHS`, and what the graph does."""
    torch.manual_seed(1)
    made = part_of(model)
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(1, 21, (len(LENGTHS), 6)) * mask
    nothing = np.zeros((len(LENGTHS), 1, made.entries.shape[1]), dtype=np.float32)
    feed = {"video": made.entries[ids.numpy()], "video_mask": mask.numpy()}
    feed |= {"comment": nothing, "comment_mask": nothing[..., 0] > 0}
    session = onnxruntime.InferenceSession(made.encoder, providers=["CPUExecutionProvider"])
    return model.user_vectors(SimpleNamespace(video_ids=ids)).numpy(), session.run(None, feed)[0]


@KINDS
@pytest.mark.parametrize("times", [0.01, 5, 40])
@pytest.mark.parametrize("norm", ["first", "last"])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_what_is_hidden_stays_hidden_however_high_the_scores_are(
    kind: str, norm: str, heads: int, times: float
) -> None:
    model = model_of(kind, norm=norm, heads=heads, hidden=16, inner=24)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
        for block in model.blocks:
            block.attention.inputs.weight[:32] *= times  # queries and keys
            block.attention.inputs.bias[:32] *= times
    expected, found = both(model)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)


@KINDS
@pytest.mark.parametrize("norm", ["first", "last"])
def test_hidden_scores_leave_no_denormal_shares(kind: str, norm: str) -> None:
    constants = onnx.load_from_string(part_of(model_of(kind, norm=norm)).encoder).graph.initializer
    numbers = np.concatenate([numpy_helper.to_array(constant).ravel() for constant in constants])
    found = set(numbers[numbers < -25].tolist())
    # exp of -87.4 and less is denormal, or 0 by way of one.
    assert len(found) == 1 and all(2 * low + 30 > -87 and low <= -30 for low in found), found


def test_no_score_comes_near_the_limit() -> None:
    """Scores of states from the edge of where they can lie, in the worst directions too."""
    rng = np.random.default_rng(0)
    score, bias = rng.normal(size=(5, 5)), rng.normal(size=5)
    asking = Reach(*rng.normal(size=(2, 5)), 5**0.5)
    seen = Reach(*rng.normal(size=(2, 5)), 3.0)
    limit = lowest([(score, bias)], asking, seen)
    drawn = rng.normal(size=(2, 4000, 5))
    drawn /= np.linalg.norm(drawn, axis=2, keepdims=True)
    first, second = (
        one.weight * z * one.radius + one.bias for one, z in zip((asking, seen), drawn, strict=True)
    )
    largest = np.abs((first @ score.T + bias) @ second.T).max()
    assert -limit >= largest + 30 and -limit < 2 * largest + 30


def test_where_states_lie() -> None:
    norm = torch.nn.LayerNorm(8)
    torch.nn.init.normal_(norm.weight)
    found = reach_of_norm(norm)
    assert np.array_equal(found.weight, norm.weight.detach().numpy()) and found.radius == 8**0.5
    rows, places = np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([[0.0, 2.0]])
    assert reach_of_rows(rows, places).radius == 7.0


def test_of_a_broken_checkpoint_no_bound_is_known() -> None:
    reach = Reach(np.ones(2), np.zeros(2), 1.0)
    assert lowest([(np.full((2, 2), np.nan), np.zeros(2))], reach, reach) == HIDDEN
