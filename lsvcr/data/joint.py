"""What training on both tasks at once may see.

Under leave-last each task holds out its own last samples of a user. A comment sample may be younger than a held-out
like, and the other way round, so that its history would show stage one, which trains on both tasks together, what the
other task is tested on. Here the histories of both end where either task's held-out samples begin. Trained on one task
alone, as in stage two, there is nothing to hide; under a temporal split neither, for the cut times are everybody's.
"""

from collections.abc import Iterable

import numpy as np

from lsvcr.data.sources import OFFICIAL
from lsvcr.data.store import Dataset, Samples
from lsvcr.schema import Split, Task

_LATER = {Split.TRAIN: (Split.VAL, Split.TEST), Split.VAL: (Split.TEST,), Split.TEST: ()}


def joint_samples(dataset: Dataset, task: Task, split: Split) -> Samples:
    """`dataset.samples`, with histories that end before what either task holds out from that split.

    Rows keep their numbers; a history may become empty. Test samples see all that lies before their cut time.
    """
    samples = dataset.samples(task, split)
    if not _LATER[split] or dataset.manifest["split"]["cut_times"] is not None:
        return samples
    rows = samples.rows.copy()
    for name, ends in zip(("video_end", "comment_end"), held_out_from(dataset, _LATER[split]), strict=True):
        rows[name] = np.minimum(rows[name], ends[rows["user"]])
    return Samples(rows, samples.positives)


def held_out_from(dataset: Dataset, splits: Iterable[Split]) -> tuple[np.ndarray, np.ndarray]:
    """Where the liked videos and the touched comments of each user begin to be held out as samples of `splits`.

    Returns:
        (video ends, comment ends), int64 (n_users + 1,): positions in the event arrays. A user of whom nothing is held
        out has the largest int64.
    """
    video = np.full(dataset.n_users + 1, np.iinfo(np.int64).max)
    comment = video.copy()
    for split in splits:
        rec, comm_rank = (dataset.samples(task, split) for task in (Task.REC, Task.COMM_RANK))
        np.minimum.at(video, rec.user, rec.video_end)
        np.minimum.at(comment, comm_rank.user, comm_rank.comment_end)
    if dataset.manifest["source"] == OFFICIAL:
        # A sample with histories of its own became a further user (`official_chains`), of whom training knows nothing.
        trained = np.zeros(len(video), bool)
        for task in Task:
            trained[dataset.samples(task, Split.TRAIN).user] = True
        video[~trained] = comment[~trained] = 0
    return video, comment
