"""The plan of an embedding run: every text once, every row once, whatever the number of processes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsvcr.training import embed_write
from lsvcr.training.embed_plan import Plan, make_plan
from lsvcr.utils.errors import UserError


class Table(list):
    def take(self, indices):
        return [self[index] for index in indices]


@given(
    st.lists(st.sampled_from(["", " ", "a", "bb", "bb ", "你好", "ccc", "\ud800"]), max_size=30),
    st.integers(1, 9),
)
def test_plan_places_every_text_once(texts, budget):
    table = Table(["", *texts])
    plan = make_plan(table, lambda chunk: [len(text.strip()) for text in chunk], budget)
    seen = [table[row] for row in plan.first]
    assert len(set(seen)) == len(seen) and set(seen) == {text for text in table if text.strip()}
    assert list(plan.first) == sorted(plan.first)
    batches = [plan.share(of, 2) for of in range(2)]
    numbers = np.concatenate([np.empty(0, dtype=np.int64), *batches[0], *batches[1]]).astype(np.int64)
    assert sorted(numbers) == list(range(len(seen)))
    rows, place = plan.scatter(numbers)
    assert sorted(rows) == [row for row, text in enumerate(table) if text.strip()]
    assert all(table[row] == seen[numbers[at]] for row, at in zip(rows, place, strict=True))
    assert plan.tokens(batches[0]) + plan.tokens(batches[1]) == sum(len(text.strip()) for text in seen)


@pytest.mark.parametrize(("batches", "times"), [([[0], [1]], 0), ([[0], [1, 2], [0]], 2)])
def test_merge_refuses_rows_that_are_missing_or_double(tmp_path, batches, times):
    plan = make_plan(Table(["", "a", "b", "c"]), lambda texts: [1] * len(texts), 2)
    plan = Plan(**{**vars(plan), "batches": [np.array(batch) for batch in batches]})
    rows = sum(map(len, batches))
    embed_write.create_npy(embed_write.part_path(tmp_path, "x.npy", 0), rows, 2)[:] = 1
    with pytest.raises(UserError, match=f"written {times} times"):
        embed_write.merge(tmp_path, "x.npy", plan, 2, processes=1)
