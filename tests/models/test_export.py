"""The user encoder leaves torch: one ONNX graph for any batch and any lengths."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from lsvcr.models.sr import Histories, SRModel

pytestmark = pytest.mark.filterwarnings("ignore:.*axis name", "ignore:.*LeafSpec:FutureWarning")

TEXT, WIDTH, N_VIDEOS, MAX = 12, 16, 30, 20
NAMES = [
    "video_title",
    "video_comment",
    "video_ids",
    "video_mask",
    "comment_title",
    "comment_comment",
    "comment_video_ids",
    "comment_mask",
    "watched_title",
    "watched_ids",
]


class UserEncoder(nn.Module):
    """Plain tensors in, the vectors of both tasks out."""

    def __init__(self, model: SRModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        video_title: Tensor,
        video_comment: Tensor,
        video_ids: Tensor,
        video_mask: Tensor,
        comment_title: Tensor,
        comment_comment: Tensor,
        comment_video_ids: Tensor,
        comment_mask: Tensor,
        watched_title: Tensor,
        watched_ids: Tensor,
    ) -> tuple[Tensor, Tensor]:
        project = self.model.project
        histories = Histories(
            project(video_title),
            project(video_comment),
            video_ids,
            video_mask,
            project(comment_title),
            project(comment_comment),
            comment_video_ids,
            comment_mask,
        )
        states = self.model.encode(histories)
        watched = self.model.video_vectors(project(watched_title), watched_ids)
        return self.model.rec_user(states), self.model.comm_rank_user(states, watched)


def inputs(batch: int, videos: int, comments: int, empty: str = "") -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch * 100 + videos * 10 + comments)
    out: list[Tensor] = []
    for side, width in (("video", videos), ("comment", comments)):
        lengths = torch.randint(1, width + 1, (batch,), generator=generator)
        lengths[-1] = 0  # one user of every batch has nothing here
        if empty in (side, "both"):
            lengths[:] = 0
        out += [
            torch.randn(batch, width, TEXT, generator=generator),
            torch.randn(batch, width, TEXT, generator=generator),
            torch.randint(1, N_VIDEOS + 1, (batch, width), generator=generator),
            torch.arange(width) < lengths[:, None],
        ]
    out += [torch.randn(batch, TEXT, generator=generator), torch.randint(0, N_VIDEOS + 1, (batch,))]
    return tuple(out)


@pytest.fixture(scope="module")
def encoder() -> UserEncoder:
    torch.manual_seed(0)
    model = SRModel(text_width=TEXT, hidden=WIDTH, inner=32, max_position=MAX, n_videos=N_VIDEOS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return UserEncoder(model).eval()


@pytest.fixture(scope="module")
def session(encoder: UserEncoder, tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    path: Path = tmp_path_factory.mktemp("onnx") / "user.onnx"
    batch, videos, comments = (
        torch.export.Dim(n, min=1, max=m) for n, m in (("B", 4096), ("V", MAX), ("C", MAX))
    )
    video, comment = {0: batch, 1: videos}, {0: batch, 1: comments}
    shapes = [video] * 4 + [comment] * 4 + [{0: batch}] * 2
    torch.onnx.export(
        encoder,
        inputs(3, 5, 4),
        path,
        dynamo=True,
        input_names=NAMES,
        output_names=["rec", "comm_rank"],
        dynamic_shapes=tuple(shapes),
        verbose=False,
    )
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("empty", ["", "video", "comment", "both"])
@pytest.mark.parametrize(
    ("batch", "videos", "comments"), [(1, 1, 1), (2, 7, 3), (5, 1, 20), (3, 20, 1), (64, 20, 20)]
)
def test_graph_equals_the_model(encoder, session, batch, videos, comments, empty):
    tensors = inputs(batch, videos, comments, empty)
    with torch.no_grad():
        expected = encoder(*tensors)
    feeds = {name: tensor.numpy() for name, tensor in zip(NAMES, tensors, strict=True)}
    found = session.run(None, feeds)
    for ours, graph in zip(expected, found, strict=True):
        assert ours.isfinite().all()
        np.testing.assert_allclose(graph, ours.numpy(), rtol=0, atol=1e-4)
