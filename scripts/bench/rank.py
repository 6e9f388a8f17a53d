"""A training step and the evaluation of stage two, against the step as the reference implementation computes it.

    python scripts/bench/rank.py [--json] [--quick] [--work build/bench] [--steps 5] [--million]

Batch 512, d = 64, histories 50 + 50, all full, text vectors 256 wide, video ids, id-text contrast, softmax over the
whole catalogue; 10,000 and 100,000 videos drawn evenly, so that a step meets as many different ones as can be. Ours is
`RankModel` with the batches, the loss and AdamW of training. The reference's step is the same model computed as the
reference implementation does: each occurrence of a text is gathered and projected on its own, and the contrast's
negatives come from an N x N matrix of noise for the N = 25,600 entries of the video histories. (That contrast is
another estimate of the same expectation: losses are compared without it.) Steps are taken in turns; memory is that of
a process each. Between steps of the reference, which take gigabytes, ours is slower than in training: `alone` is a
process that takes steps of ours only, in float32 and, where the processor has instructions for it, in bfloat16 mixed
precision (`MIXED_PRECISION=bf16` of scripts/finetune.sh), in turns. `--million` adds one million videos, with the
whole softmax and with 1,000 drawn negatives.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import torch
from common import arguments, middle, report, run_child, tell
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lsvcr.data.rank import RankBatch
from lsvcr.evaluation.evaluator import evaluate
from lsvcr.models.rank import RankModel
from lsvcr.nn.similarity import cosine_logits, unit
from lsvcr.schema import PAD, Split, Task
from lsvcr.settings import RankSettings
from lsvcr.training.rank_setup import Setup, set_up
from lsvcr.utils.logging import quiet_third_party
from lsvcr.utils.precision import wants_bf16

BATCH = 512
LENGTH = 50
TEXT_WIDTH = 256
USERS = 10_000
NEGATIVES = 99

COLUMNS = """
ids: numbers
videos: {files: videos.parquet, id: video, title: title}
likes: {files: likes.parquet, user: user, video: video, time: time, unit: milliseconds}
comments: {files: comments.parquet, id: comment, text: text, video: video, likes: likes}
comment_likes: {files: comment_likes.parquet, user: user, comment: comment, time: time, unit: milliseconds}
"""

ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import rank
from pathlib import Path
rank.steps_alone(Path(sys.argv[2]), int(sys.argv[3]))
"""

MEMORY = """
import sys
sys.path.insert(0, sys.argv[1])
import rank
from common import own_peak_gb
from pathlib import Path
rank.some_steps(sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
print(own_peak_gb())
"""


class ReferenceStep(RankModel):
    """The same model, computed as the reference implementation does."""

    def _distinct(self, text: Tensor | None, places: Tensor, *ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Nothing is done once: what comes back projects each occurrence it is asked for."""
        assert text is not None
        return lambda wanted: self.project_texts(text[wanted.flatten()]).view(*wanted.shape, -1)

    def _training_videos(self, batch: RankBatch) -> Callable[[Tensor], Tensor]:
        return self._distinct(self.video_text, self.video_places)

    def _rec_loss(self, batch: RankBatch, users: Tensor, videos: Callable[[Tensor], Tensor]) -> Tensor:
        items = self._video_vectors(videos, self._every(self.n_videos)[1:])
        return F.cross_entropy(cosine_logits(users, items, self.sr.temperature), batch.candidates[:, 0] - 1)

    def _id_text(self, batch: RankBatch, videos: Callable[[Tensor], Tensor]) -> Tensor:
        entries = batch.video_ids[batch.video_ids != PAD]
        assert self.sr.video_id is not None
        ids, titles = unit(self.sr.video_id(entries)), unit(videos(entries))
        count = len(entries)
        return (self._direction(ids, titles, count) + self._direction(titles, ids, count)) / 2

    def _direction(self, queries: Tensor, keys: Tensor, count: int) -> Tensor:
        noise = torch.rand(count, count).fill_diagonal_(-1)
        drawn = noise.topk(NEGATIVES, dim=1).indices  # (N, K)
        positive = (queries * keys).sum(-1, keepdim=True)
        negative = (keys[drawn] * queries[:, None]).sum(-1)
        logits = torch.cat([positive, negative], dim=1) / self.sr.temperature
        return F.cross_entropy(logits, torch.zeros(count, dtype=torch.int64))


def world(videos: int, users: int, work: Path) -> Path:
    """A prepared dataset with text vectors; everybody has LENGTH likes, then comments, then likes. Made once."""
    data = work / f"rank-{videos}-{users}"
    if not data.exists():
        raw = data.with_name(data.name + "-raw")
        raw.mkdir(parents=True, exist_ok=True)
        tell(f"making {videos:,} videos and {users:,} users ...")
        comments = max(videos, 250_000)
        _write_tables(raw, videos, users, comments, np.random.default_rng(0))
        run_child(["-m", "lsvcr", "prepare", "tables", "--raw", str(raw), "--out", str(data)])
        rng = np.random.default_rng(1)
        for name, rows in (("videos", videos), ("comments", comments)):
            vectors = rng.standard_normal((rows + 1, TEXT_WIDTH), dtype=np.float32)
            vectors[0] = 0
            np.save(data / f"text_{name}.npy", vectors)
    return data


def _write_tables(raw: Path, videos: int, users: int, comments: int, rng: np.random.Generator) -> None:
    likes = LENGTH + 10
    numbers = pl.Series(np.arange(1, videos + 1))
    pl.DataFrame({"video": numbers, "title": [f"v{i}" for i in range(videos)]}).write_parquet(
        raw / "videos.parquet"
    )
    of = np.arange(comments) % videos + 1
    pl.DataFrame(
        {
            "comment": np.arange(1, comments + 1),
            "text": [f"c{i}" for i in range(comments)],
            "video": of,
            "likes": 0,
        }
    ).write_parquet(raw / "comments.parquet")
    everyone = np.arange(1, users + 1)
    pl.DataFrame(
        {
            "user": np.repeat(everyone, LENGTH + 5),
            "comment": rng.integers(1, comments + 1, users * (LENGTH + 5)),
            "time": np.tile(np.arange(LENGTH, 2 * LENGTH + 5), users) * 1000,
        }
    ).write_parquet(raw / "comment_likes.parquet")
    pl.DataFrame(
        {
            "user": np.repeat(everyone, likes),
            "video": rng.integers(1, videos + 1, users * likes),
            "time": np.tile(np.r_[:LENGTH, 3 * LENGTH : 3 * LENGTH + 10], users) * 1000,
        }
    ).write_parquet(raw / "likes.parquet")
    (raw / "columns.yaml").write_text(COLUMNS)


def setup_for(data: Path, task: str, negatives: int = 0, dropout: float = 0.3) -> Setup:
    """The published settings on this dataset."""
    return set_up(
        RankSettings(
            finetune_task=task,
            data_path=str(data),
            photo_emb_file=str(data / "text_videos.npy"),
            comment_emb_file=str(data / "text_comments.npy"),
            text_width=TEXT_WIDTH,
            neg_video_num=negatives,
            dropout=dropout,
            attention_dropout=dropout,
        )
    )


def as_reference(model: RankModel, contrast: bool) -> ReferenceStep:
    """The reference's way over the same weights and tables."""
    made = ReferenceStep(
        model.sr,
        model.task,
        model.video_text,
        model.comment_text,
        n_videos=model.n_videos,
        n_comments=model.n_comments,
        id_text_weight=model.id_text_weight if contrast else 0.0,
    )
    return made.train()


class Batches:
    """Training batches whose histories are full, by number."""

    def __init__(self, setup: Setup) -> None:
        self._data = data = setup.data(Split.TRAIN)
        chosen, known = data.samples, data.dataset
        videos = chosen.video_end - known.video_events.offsets[chosen.user]
        comments = chosen.comment_end - known.comment_events.offsets[chosen.user]
        full = np.flatnonzero((videos >= LENGTH) & (comments >= LENGTH))
        self._rows = np.random.default_rng(2).permutation(full)
        settings = setup.settings
        self._negatives = settings.neg_video_num if setup.task is Task.REC else settings.neg_comment_num

    def __getitem__(self, number: int) -> RankBatch:
        return self._data.training(self._rows[number * BATCH :][:BATCH], (0, 0), self._negatives)


class Step:
    """Takes training steps of one model and notes where the time goes; `half`: in bfloat16 mixed precision."""

    def __init__(self, model: RankModel, half: bool = False) -> None:
        self.model, self.half = model, half
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-5, fused=True)
        self.sections: dict[str, list[float]] = {}

    def __call__(self, batches: Batches, number: int) -> float:
        """Seconds of building a batch and of a whole step on it."""
        start = time.perf_counter()
        with self._section("data"):
            batch = batches[number]
        with self._section("forward"), torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            loss = self.model.training_loss(batch)["loss"]
        with self._section("backward"):
            loss.backward()
        with self._section("optimiser"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        return time.perf_counter() - start

    @contextmanager
    def _section(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.sections.setdefault(name, []).append(time.perf_counter() - start)

    def shares(self) -> dict[str, float]:
        """Median seconds by section."""
        return {name: middle(values[1:] or values) for name, values in self.sections.items()}


def difference(data: Path) -> float:
    """How far the ranking loss' gradient is from the reference's as one vector, relative; dropout and contrast off."""
    setup = setup_for(data, "Rec", dropout=0.0)
    setup.model.id_text_weight = 0.0
    batch = Batches(setup)[0]
    found = []
    for model in (setup.model.train(), as_reference(setup.model, False)):
        model.zero_grad()
        model.training_loss(batch)["loss"].backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    apart = [(a - b).double().square().sum() for a, b in zip(*found, strict=True)]
    return float((sum(apart) / sum(b.double().square().sum() for b in found[1])).sqrt())


def rec_figures(name: str, data: Path, steps: int) -> dict[str, float]:
    """Steps of ours and of the reference's in turns, with and without the contrast."""
    setup = setup_for(data, "Rec")
    made = {
        "ours": setup.model.train(),
        "reference": as_reference(setup.model, True),
        "reference_no_contrast": as_reference(setup.model, False),
    }
    takers = {who: Step(model) for who, model in made.items()}
    batches = Batches(setup)
    seconds: dict[str, list[float]] = {who: [] for who in takers}
    for number in range(steps + 1):
        for who, take in takers.items():
            if who == "reference" and number > 2:
                continue  # a dozen seconds each
            seconds[who].append(take(batches, number))
        tell(
            f"{name}: step {number} of {steps} " + ", ".join(f"{w} {t[-1]:.2f} s" for w, t in seconds.items())
        )
    took = {who: middle(values[1:]) for who, values in seconds.items()}
    return {
        **{f"rec_{name}{_of(who)}_samples_per_s": BATCH / value for who, value in took.items()},
        f"rec_{name}_speedup": took["reference"] / took["ours"],
        f"rec_{name}_speedup_no_contrast": took["reference_no_contrast"] / took["ours"],
        **{f"rec_{name}_{part}_s": value for part, value in takers["ours"].shares().items()},
        **floor_figures(f"rec_{name}", setup.model, batches[0], took["ours"]),
    }


def _of(who: str) -> str:
    return "" if who == "ours" else f"_{who}"


def floor_figures(name: str, model: RankModel, batch: RankBatch, seconds: float) -> dict[str, float]:
    """Operations of a step's matrix products, and how many times the time they need at least a step takes."""
    with FlopCounterMode(display=False) as counter:
        model.training_loss(batch)["loss"].backward()
    model.zero_grad()
    floor = counter.get_total_flops() / peak_flops()
    return {
        f"{name}_gflop": counter.get_total_flops() / 1e9,
        f"{name}_floor_s": floor,
        f"{name}_over_floor": seconds / floor,
    }


def peak_flops(width: int = 2048) -> float:
    """Operations a second of a large float32 matrix product on this machine."""
    left, right = torch.randn(width, width), torch.randn(width, width)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 2 * width**3 / middle(times[1:])


def alone_figures(name: str, data: Path, steps: int) -> dict[str, float]:
    """Samples a second of a process that takes steps of ours only."""
    words = ["-c", ALONE, str(Path(__file__).parent), str(data), str(steps)]
    found = dict(line.split() for line in run_child(words).stdout.splitlines())
    return {f"rec_{name}_alone_{who}_samples_per_s": float(value) for who, value in found.items()}


def steps_alone(data: Path, steps: int) -> None:
    """Steps of ours in each precision in turns, and a line of samples a second for each."""
    quiet_third_party()
    setup = setup_for(data, "Rec")
    model, batches = setup.model.train(), Batches(setup)
    takers = {"fp32": Step(model)} | ({"bf16": Step(model, half=True)} if wants_bf16(None) else {})
    seconds: dict[str, list[float]] = {who: [] for who in takers}
    for number in range(steps + 2):
        for who, take in takers.items():
            seconds[who].append(take(batches, number))
    for who, values in seconds.items():
        print(who, BATCH / middle(values[2:]))


def commrank_figures(data: Path, steps: int) -> dict[str, float]:
    """Steps of ours on CommRank."""
    setup = setup_for(data, "CommRank")
    take, batches = Step(setup.model.train()), Batches(setup)
    seconds = [take(batches, number) for number in range(steps + 1)]
    return {"commrank_10k_samples_per_s": BATCH / middle(seconds[1:])}


def evaluation_figures(data: Path, videos: str) -> dict[str, float]:
    """The whole test split over the whole catalogue, twice; the second run counts."""
    setup = setup_for(data, "Rec")
    test = setup.data(Split.TEST)
    seconds = []
    for _ in range(2):
        setup.model.train().eval()  # forgets what the last run kept
        start = time.perf_counter()
        evaluate(setup.model, test)
        seconds.append(time.perf_counter() - start)
    return {f"eval_{videos}_users_per_s": len(test) / seconds[-1], f"eval_{videos}_s": seconds[-1]}


def some_steps(who: str, data: Path, task: str, negatives: int) -> None:
    """Three steps, for a process whose memory is measured."""
    quiet_third_party()
    setup = setup_for(data, task, negatives)
    model = setup.model.train()
    take = Step(model if who == "ours" else as_reference(model, who == "reference"))
    batches = Batches(setup)
    for number in range(3):
        take(batches, number)


def memory(who: str, data: Path, task: str = "Rec", negatives: int = 0) -> float:
    """Peak resident memory of such a process, GB."""
    words = ["-c", MEMORY, str(Path(__file__).parent), who, str(data), task, str(negatives)]
    return float(run_child(words).stdout.split()[-1])


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__, "2,000 users and 10,000 videos alone, 2 steps")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each way")
    parser.add_argument("--million", action="store_true", help="also one million videos (3 GB of disk)")
    options = parser.parse_args()
    quiet_third_party()
    users, steps = (2_000, 2) if options.quick else (USERS, options.steps)
    sizes = {"10k": 10_000} if options.quick else {"10k": 10_000, "100k": 100_000}
    figures: dict[str, float] = {}
    for name, videos in sizes.items():
        data = world(videos, users, options.work)
        figures[f"rec_{name}_grad_diff"] = difference(data)
        figures |= rec_figures(name, data, steps)
        figures |= alone_figures(name, data, 3 * steps)
        figures |= evaluation_figures(data, name)
        ways = ("ours", "reference", "reference_no_contrast") if name == "10k" else ("ours",)
        figures |= {f"rec_{name}{_of(who)}_rss_gb": memory(who, data) for who in ways}
    figures |= commrank_figures(world(10_000, users, options.work), steps)
    if options.million:
        data = world(1_000_000, users, options.work)
        figures |= {
            f"rec_1m_{name}_rss_gb": memory("ours", data, "Rec", n)
            for name, n in (("full", 0), ("1000", 1000))
        }
    report("rank", figures, options.json)


if __name__ == "__main__":
    main()
