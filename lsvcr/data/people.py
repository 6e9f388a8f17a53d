"""Whose a sample is: figures are about people, who may have several samples."""

from typing import TYPE_CHECKING

import numpy as np

from lsvcr.data.sources import OFFICIAL
from lsvcr.schema import Split, Task

if TYPE_CHECKING:
    from lsvcr.data.store import Dataset


def people_of(dataset: "Dataset", task: Task, split: Split) -> np.ndarray:
    """The person behind each sample of a task and split, as the index of a user: (n,) int64.

    It is the sample's own user, but for the further users `USER#2`, `USER#3`, ... that samples with histories of their
    own become (`official_chains`): they are `USER`. A real user whose id looks like that counts as the same person.
    """
    users = dataset.samples(task, split).user.astype(np.int64)
    if dataset.manifest.get("source") != OFFICIAL:
        return users
    ids = dataset.raw_ids("users").to_list()
    numbers = {name: number for number, name in enumerate(ids, start=1)}
    people = np.arange(len(ids) + 1)
    for number, name in enumerate(ids, start=1):
        person, mark, further = name.rpartition("#")
        if mark and further.isdecimal() and person in numbers:
            people[number] = numbers[person]
    return people[users]
