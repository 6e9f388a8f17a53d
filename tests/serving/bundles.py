"""Random bundles without torch, and the same answers in plain NumPy from the same random numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lsvcr.schema import Task
from lsvcr.serving.bundle import write_bundle
from lsvcr.serving.bundle_write import CommentTable, Csr, Part, UserTable, VideoTable

BOTH = (Task.REC, Task.COMM_RANK)


@dataclass
class Weights:
    """A tiny model of one task: text vectors (w) are projected to T or C (d), the rest follows the contract."""

    projection: np.ndarray  # (w, d)
    merge: np.ndarray  # (2, d, d): of the title, of the comment
    bias: np.ndarray  # (d,)
    encoder: np.ndarray  # (3, d, d): of the mean video step, of the mean comment step, of the watched video
    start: np.ndarray  # (d,): an empty user's vector
    ids: np.ndarray  # (N + 1, d): E, row 0 zeros


class World:
    """What a bundle was made of, with the answers computed step by step.

    Attributes:
        video_texts, comment_texts: (n + 1, w) float32, row 0 zeros.
        lists: comments of each video, most liked first; own: the video of each comment.
        likes: (M + 1,).
        users: for each stored user the liked videos, the visits [(video, comments)] and all videos ever liked or
            visited, as rows.
    """

    def __init__(
        self, n_videos: int, n_comments: int, n_users: int, d: int, w: int, seed: int, distinct: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.d, self.w = d, w
        self.video_texts, self.comment_texts = _texts(rng, n_videos, w), _texts(rng, n_comments, w)
        self.own = np.concatenate([[0], rng.integers(1, n_videos + 1, n_comments)]).astype(np.int64)
        self.likes = np.concatenate([[0], rng.integers(0, 50, n_comments)]).astype(np.int64)
        order = np.lexsort((np.arange(n_comments + 1), -self.likes, self.own))[1:]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(self.own[1:], minlength=n_videos + 1))])
        self.lists = Csr(offsets.astype(np.int64), order.astype(np.int32))
        self.models = {task: _weights(rng, n_videos, d, w) for task in BOTH}
        if distinct:  # every so many videos are the same
            same = np.concatenate([[0], np.arange(n_videos) % distinct + 1])
            self.video_texts = self.video_texts[same]
            for model in self.models.values():
                model.ids = model.ids[same]
        self.users = [_user(rng, n_videos, self) for _ in range(n_users)]

    def entries(self, task: Task) -> np.ndarray:
        """(N + 1, d) float32."""
        model = self.models[task]
        return (self.titles(task) @ model.merge[0] + model.bias + model.ids).astype(np.float32)

    def titles(self, task: Task) -> np.ndarray:
        """T, (N + 1, d)."""
        return self.video_texts @ self.models[task].projection

    def contents(self, task: Task) -> np.ndarray:
        """C, (M + 1, d)."""
        return self.comment_texts @ self.models[task].projection

    def shown(self, task: Task) -> np.ndarray:
        """(M + 1, d) float32."""
        return (self.contents(task) @ self.models[task].merge[1]).astype(np.float32)

    def watched(self, task: Task) -> np.ndarray:
        """(N + 1, d) float32."""
        return (self.titles(task) + self.models[task].ids).astype(np.float32)

    def items(self, task: Task) -> np.ndarray:
        """(N + 1, d) or (M + 1, d) float32 of unit length."""
        return unit(self.watched(task) if task is Task.REC else self.contents(task))

    def user(
        self,
        task: Task,
        videos: list[int],
        visits: list[tuple[int, list[int]]],
        watched: int | None = None,
        limit: int = 50,
    ) -> np.ndarray:
        """The user vector (d,) from rows; a step is a video and its top comment, or a visit."""
        model = self.models[task]
        entries, shown = self.entries(task), self.shown(task)
        top = [self.lists.row(video) for video in videos]
        liked = [entries[v] + (shown[c[0]] if len(c) else 0) for v, c in zip(videos, top, strict=True)]
        commented = [
            entries[v] + (np.mean([shown[c] for c in comments], axis=0) if comments else 0)
            for v, comments in visits
        ]
        vector = model.start.copy()
        for steps, matrix in zip((liked[-limit:], commented[-limit:]), model.encoder[:2], strict=True):
            if steps:
                vector = vector + np.mean(steps, axis=0) @ matrix
        if watched is not None:
            vector = vector + self.watched(task)[watched] @ model.encoder[2]
        return unit(vector[None])[0]

    def encoder(self, task: Task) -> bytes:
        """The graph of `user`."""
        return encoder_graph(self.models[task], self.d, task is Task.COMM_RANK)

    def tower(self, task: Task) -> bytes:
        """The graph of new texts."""
        return tower_graph(self.models[task], self.w, self.d)

    def part(self, task: Task) -> Part:
        """What `write_bundle` wants of a task."""
        return Part(
            encoder=self.encoder(task),
            items=self.items(task),
            entries=self.entries(task),
            shown=self.shown(task),
            watched=self.watched(task) if task is Task.COMM_RANK else None,
            tower=self.tower(task),
            about={"checkpoint": f"random {task.value}"},
        )

    def user_table(self, ids: Any) -> UserTable:
        """The stored users."""
        comments = [[c for _, own in visits for c in own] for _, visits, _ in self.users]
        under = [[v for v, own in visits for _ in own] for _, visits, _ in self.users]
        return UserTable(
            ids=ids,
            videos=csr([videos for videos, _, _ in self.users]),
            comments=csr(comments),
            comment_videos=csr(under).items,
            seen=csr([seen for _, _, seen in self.users]),
        )


def make_bundle(
    path: Path,
    *,
    n_videos: int = 40,
    n_comments: int = 120,
    n_users: int = 6,
    d: int = 16,
    w: int = 24,
    seed: int = 0,
    tasks: tuple[Task, ...] = BOTH,
    text_ids: bool = False,
    max_steps: int = 50,
    distinct: int = 0,
    **more: Any,
) -> World:
    """Write a random bundle; returns what it was made of.

    Ids: video v is 1000 + 7 v (or `v17`), comment c is 5 c (or `c17`), user u is 100 + u (or `u17`); titles and texts
    are `video 17` and `comment 17`. `distinct` > 0: so many videos differ, the
    others equal one of them. `more` goes to `write_bundle`, such as rows="int8".
    """
    world = World(n_videos, n_comments, n_users, d, w, seed, distinct)
    write_bundle(
        path,
        videos=VideoTable(
            video_ids(n_videos, text_ids), [f"video {v}" for v in range(1, n_videos + 1)], world.lists
        ),
        comments=CommentTable(
            comment_ids(n_comments, text_ids),
            [f"comment {c}" for c in range(1, n_comments + 1)],
            world.likes[1:],
        ),
        parts={task: world.part(task) for task in tasks},
        users=world.user_table(user_ids(n_users, text_ids)) if n_users else None,
        text_width=w,
        max_videos=max_steps,
        max_entries=max_steps,
        **more,
    )
    return world


def video_ids(n: int, text: bool = False) -> list[Any]:
    """Raw ids of rows 1 .. n."""
    return [f"v{row}" if text else 1000 + 7 * row for row in range(1, n + 1)]


def comment_ids(n: int, text: bool = False) -> list[Any]:
    """Raw ids of rows 1 .. n."""
    return [f"c{row}" if text else 5 * row for row in range(1, n + 1)]


def user_ids(n: int, text: bool = False) -> list[Any]:
    """Raw ids of rows 1 .. n."""
    return [f"u{row}" if text else 100 + row for row in range(1, n + 1)]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; zero rows stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-8)).astype(np.float32)


def csr(rows: list[list[int]]) -> Csr:
    """Rows 1 .. n of a ragged table."""
    offsets = np.concatenate([[0, 0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Csr(offsets, np.array([i for row in rows for i in row], dtype=np.int32))


def encoder_graph(model: Weights, d: int, with_watched: bool) -> bytes:
    """unit(start + mean(video steps) @ A + mean(comment steps) @ B [+ watched @ C]); no step: its mean is zero."""
    nodes = [*_mean("video"), *_mean("comment")]
    terms = ["video_mean", "comment_mean"] + (["watched"] if with_watched else [])
    constants = {"one": np.ones(1, np.float32), "axis": np.array([1]), "last": np.array([-1])}
    constants["tiny"] = np.full(1, 1e-8, np.float32)
    total = "start"
    for place, term in enumerate(terms):
        constants[f"w{place}"] = model.encoder[place].astype(np.float32)
        nodes.append(helper.make_node("MatMul", [term, f"w{place}"], [f"p{place}"]))
        nodes.append(helper.make_node("Add", [total, f"p{place}"], [f"s{place}"]))
        total = f"s{place}"
    constants["start"] = model.start.astype(np.float32)
    nodes.append(helper.make_node("ReduceL2", [total], ["length"], axes=[-1], keepdims=1))
    nodes.append(helper.make_node("Max", ["length", "tiny"], ["divisor"]))
    nodes.append(helper.make_node("Div", [total, "divisor"], ["user"]))
    kinds = {"video": ["B", "V", d], "comment": ["B", "C", d]}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in kinds.items()]
    for name, side in (("video_mask", "V"), ("comment_mask", "C")):
        inputs.append(helper.make_tensor_value_info(name, TensorProto.BOOL, ["B", side]))
    if with_watched:
        inputs.append(helper.make_tensor_value_info("watched", TensorProto.FLOAT, ["B", d]))
    output = helper.make_tensor_value_info("user", TensorProto.FLOAT, ["B", d])
    return _graph(nodes, inputs, [output], constants)


def tower_graph(model: Weights, w: int, d: int) -> bytes:
    """text @ projection, and what the two halves of the merge make of it."""
    constants = {
        "p": model.projection.astype(np.float32),
        "a": model.merge[0].astype(np.float32),
        "c": model.merge[1].astype(np.float32),
        "b": model.bias.astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["text", "p"], ["projected"]),
        helper.make_node("MatMul", ["projected", "a"], ["merged"]),
        helper.make_node("Add", ["merged", "b"], ["entry"]),
        helper.make_node("MatMul", ["projected", "c"], ["shown"]),
    ]
    text = helper.make_tensor_value_info("text", TensorProto.FLOAT, ["n", w])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", d])
        for name in ("projected", "entry", "shown")
    ]
    return _graph(nodes, [text], outputs, constants)


def _mean(name: str) -> list[onnx.NodeProto]:
    """Mean over the real steps of `name` (B, L, d) as `name_mean` (B, d); zeros where there are none."""
    return [
        helper.make_node("Cast", [f"{name}_mask"], [f"{name}_float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", [f"{name}_float", "last"], [f"{name}_column"]),
        helper.make_node("Mul", [name, f"{name}_column"], [f"{name}_real"]),
        helper.make_node("ReduceSum", [f"{name}_real", "axis"], [f"{name}_sum"], keepdims=0),
        helper.make_node("ReduceSum", [f"{name}_float", "axis"], [f"{name}_count"], keepdims=1),
        helper.make_node("Max", [f"{name}_count", "one"], [f"{name}_divisor"]),
        helper.make_node("Div", [f"{name}_sum", f"{name}_divisor"], [f"{name}_mean"]),
    ]


def _graph(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, np.ndarray]
) -> bytes:
    initial = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _texts(rng: np.random.Generator, n: int, w: int) -> np.ndarray:
    texts = rng.standard_normal((n + 1, w), dtype=np.float32)
    texts[0] = 0
    return texts


def _weights(rng: np.random.Generator, n_videos: int, d: int, w: int) -> Weights:
    def random(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    ids = random(n_videos + 1, d)
    ids[0] = 0
    return Weights(random(w, d), random(2, d, d), random(d), random(3, d, d), random(d), ids)


def _user(rng: np.random.Generator, n_videos: int, world: World) -> tuple[list[int], list[Any], list[int]]:
    videos = rng.integers(1, n_videos + 1, rng.integers(1, 9)).tolist()
    visits: list[tuple[int, list[int]]] = []
    for video in rng.permutation(n_videos)[: rng.integers(0, 6)] + 1:
        own = world.lists.row(int(video)).tolist()
        if own:
            visits.append((int(video), own[: int(rng.integers(1, 4))]))
    earlier = rng.integers(1, n_videos + 1, 3).tolist()
    return videos, visits, sorted({*videos, *earlier, *(under for under, _ in visits)})
