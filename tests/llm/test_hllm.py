"""HLLM's two LLMs in one process: texts to states, the loss against a plain second way, vectors for evaluation."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor

from lsvcr.data.rank import RankData
from lsvcr.data.rank_joined import JoinedBatch, JoinedStream
from lsvcr.data.rank_sequences import SequenceData
from lsvcr.data.store import Dataset
from lsvcr.evaluation.evaluator import evaluate
from lsvcr.llm.families import backbone, drop_vocabulary
from lsvcr.llm.hllm import HllmHeads, HllmModel
from lsvcr.llm.item_encoder import encode_ends
from lsvcr.llm.item_tokens import TokenTable, item_tokens
from lsvcr.llm.lora import add_lora
from lsvcr.schema import Split, Task

WIDTH = 32
LENGTH = 5


def batch_of(dataset: Dataset, negatives: int = 0, number: int = 0) -> JoinedBatch:
    rows = SequenceData(dataset, LENGTH, share="batch")
    return JoinedStream(
        rows, seed=1, batch=6, accumulation=1, negatives=negatives, place=(0, 1), micro_steps=9
    )[number]


def make(dataset: Dataset, llm: tuple, tokens: int = 0, budget: int = 400) -> HllmModel:
    model, tokenizer = llm
    table = item_tokens(tokenizer, dataset, ["title"], 96)
    item_llm, user_llm = deepcopy(model), deepcopy(model)
    drop_vocabulary(item_llm, reads=True)
    drop_vocabulary(user_llm, reads=False)
    torch.manual_seed(4)
    heads = HllmHeads(WIDTH, WIDTH, tokens, (0.1, 0.1))
    made = HllmModel(item_llm, user_llm, heads, table, pad_id=0, budget=budget, reading_budget=budget)
    made.heads.standardise(made.catalogue_states()[1:])
    return made


def test_tokens_of_videos_are_those_of_their_texts(tiny_dataset: Dataset, tiny_llm: tuple) -> None:
    _, tokenizer = tiny_llm
    table = item_tokens(tokenizer, tiny_dataset, ["title", "category"], 200)
    assert len(table) == tiny_dataset.n_videos + 1 and table.lengths[0] == 0
    title = tiny_dataset.titles()[3]
    category = tiny_dataset.column("videos", "category")[2]
    text = f"Compress the following sentence into embedding: title: {title}category: {category}"
    third, first = table.take(np.array([3, 1]))
    assert third == tokenizer(text)["input_ids"]
    assert first != third
    assert max(item_tokens(tokenizer, tiny_dataset, ["title"], 10).lengths) == 10


@pytest.mark.parametrize("count", [0, 1, 3])
def test_states_at_the_ends_equal_one_text_at_a_time(tiny_llm: tuple, count: int) -> None:
    model, tokenizer = tiny_llm
    texts = ["a cat", "", "a much longer sentence", "b", "a cat and two dogs"]
    ids = [tokenizer(text)["input_ids"] if text else [] for text in texts]
    learned = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1))
    embed = model.get_input_embeddings()
    expected = []
    for row in ids:
        if not row:
            expected.append(torch.zeros(WIDTH))
            continue
        inputs = torch.cat([embed(torch.tensor(row)), learned])[None]
        states = backbone(model)(inputs_embeds=inputs).last_hidden_state[0]
        expected.append(states[-max(1, count) :].mean(dim=0))
    for budget in (1, 40, 10_000):
        found = encode_ends(model, ids, learned, pad_id=0, budget=budget)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert encode_ends(model, [], learned, pad_id=0, budget=9).shape == (0, WIDTH)


def test_learned_tokens_and_the_llm_get_gradients(tiny_llm: tuple) -> None:
    model, _ = tiny_llm
    learned = torch.randn(2, WIDTH, requires_grad=True)
    encode_ends(model, [[5, 6, 7], [8]], learned, pad_id=0, budget=100).square().sum().backward()
    assert learned.grad is not None and float(learned.grad.abs().min(dim=1).values.max()) > 0
    assert model.get_input_embeddings().weight.grad is not None


def plain_loss(model: HllmModel, batch: JoinedBatch) -> Tensor:
    """The loss by its definition, a target at a time: every text of its own, every history of its own."""
    unit = torch.nn.functional.normalize

    def item(video: int) -> Tensor:
        states = model._read(np.array([video]), 1000)
        return model.heads.items(states)[0]

    losses = []
    scale = model.heads.log_scale.exp()
    others = batch.negatives if len(batch.negatives) else batch.targets.unique()
    for read, targets in zip(batch.video_ids.tolist(), batch.targets.tolist(), strict=True):
        own = {read[0], *targets}
        for place, target in enumerate(targets):
            if not target:
                continue
            vectors = torch.stack([item(video) for video in read[: place + 1]])
            size = vectors.pow(2).mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-3)  # a video without words
            inputs = vectors / size * model.heads.size
            user = backbone(model.user_llm)(inputs_embeds=inputs[None]).last_hidden_state[0, -1]
            keys = [target, *(video for video in others.tolist() if video and video not in own)]
            logits = torch.stack([unit(item(video), dim=0) @ unit(user, dim=0) for video in keys]) * scale
            losses.append(-logits.log_softmax(dim=0)[0])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("negatives, tokens", [(0, 0), (5, 2)])
def test_the_loss_is_that_of_the_plain_way(
    tiny_dataset: Dataset, tiny_llm: tuple, negatives: int, tokens: int
) -> None:
    model = make(tiny_dataset, tiny_llm, tokens)
    batch = batch_of(tiny_dataset, negatives)
    found = model.train()(batch)
    with torch.no_grad():
        expected = plain_loss(model, batch)
    assert float(found["loss"].detach()) == pytest.approx(float(expected), rel=1e-4)
    assert float(found["scale"]) == pytest.approx(1 / 0.07)
    assert 0 < float(found["negatives"]) <= max(negatives, len(batch.keys) - 1)


def test_every_distinct_text_of_a_step_is_read_once(tiny_dataset: Dataset, tiny_llm: tuple) -> None:
    model = make(tiny_dataset, tiny_llm)
    batch = batch_of(tiny_dataset, negatives=8)
    rows = 0

    def count(_module: object, _args: object, options: dict) -> None:
        nonlocal rows
        rows += len(options["input_ids"])

    backbone(model.item_llm).register_forward_pre_hook(count, with_kwargs=True)
    model.train()(batch)["loss"].backward()
    told = (model._texts.lengths[batch.items.numpy()] > 0).sum()
    assert rows == told < int((batch.video_ids > 0).sum() + (batch.targets > 0).sum())


@pytest.mark.parametrize("adapters", [True, False])
def test_both_llms_learn_and_the_loss_falls(tiny_dataset: Dataset, tiny_llm: tuple, adapters: bool) -> None:
    model = make(tiny_dataset, tiny_llm, tokens=1)
    if adapters:
        model.item_llm = add_lora(model.item_llm, 4, 8, 0.0)
        model.user_llm = add_lora(model.user_llm, 4, 8, 0.0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model.train()(batch_of(tiny_dataset))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    still = [name for name, value in before.items() if torch.equal(value, trained[name])]
    assert still == []


def test_user_vectors_depend_on_neither_padding_nor_company(tiny_dataset: Dataset, tiny_llm: tuple) -> None:
    model = make(tiny_dataset, tiny_llm).eval()
    data = RankData(tiny_dataset, Task.REC, Split.TEST, max_videos=LENGTH, with_comments=False)
    items = model.item_vectors()
    assert items.shape == (tiny_dataset.n_videos + 1, WIDTH) and float(items[0].abs().max()) == 0
    together = model.user_vectors(data.evaluation(np.arange(6)))
    for row in range(6):
        batch = data.evaluation(np.array([row]))
        torch.testing.assert_close(model.user_vectors(batch)[0], together[row], rtol=1e-4, atol=1e-5)
        batch.video_ids = torch.cat([batch.video_ids, torch.zeros(1, 3, dtype=torch.int64)], dim=1)
        torch.testing.assert_close(model.user_vectors(batch)[0], together[row], rtol=1e-4, atol=1e-5)


def test_item_vectors_follow_the_weights_after_training(tiny_dataset: Dataset, tiny_llm: tuple) -> None:
    model = make(tiny_dataset, tiny_llm).eval()
    data = RankData(tiny_dataset, Task.REC, Split.TEST, max_videos=LENGTH, with_comments=False)
    batch = data.evaluation(np.arange(4))
    before = model.user_vectors(batch)
    model.train()
    with torch.no_grad():
        next(backbone(model.item_llm).parameters()).mul_(1.5)
    after = model.eval().user_vectors(batch)
    assert float((after - before).abs().max()) > 1e-3


def test_a_frozen_item_llm_is_read_once_and_gives_the_same(tiny_dataset: Dataset, tiny_llm: tuple) -> None:
    model = make(tiny_dataset, tiny_llm)
    model.item_llm.requires_grad_(False)
    batch = batch_of(tiny_dataset)
    expected = float(model.train()(batch)["loss"].detach())
    model.freeze_items()
    backbone(model.item_llm).register_forward_pre_hook(lambda *_: pytest.fail("the item LLM was called"))
    assert float(model(batch)["loss"].detach()) == pytest.approx(expected, rel=1e-5)
    assert model.eval().item_vectors().shape[0] == tiny_dataset.n_videos + 1


def test_a_text_of_nothing_scores_nothing(tiny_dataset: Dataset, tiny_llm: tuple) -> None:
    """Video 32 has no title: its vector is zero, so that it ranks by chance and harms no other."""
    model = make(tiny_dataset, tiny_llm).eval()
    texts = model._texts.lengths
    assert (texts[1:] == 0).sum() == 1
    items = model.item_vectors()
    assert float(items[int(np.flatnonzero(texts == 0)[-1])].abs().max()) == 0
    data = RankData(tiny_dataset, Task.REC, Split.TEST, max_videos=LENGTH, with_comments=False)
    assert evaluate(model, data)["full"].mean("ndcg@10") is not None


def test_a_table_of_tokens_gives_back_its_rows() -> None:
    rows = [[], [4, 5], [], [6], [7, 8, 9]]
    table = TokenTable(rows)
    assert table.lengths.tolist() == [0, 2, 0, 1, 3]
    assert table.take(np.array([4, 1, 2, 4])) == [[7, 8, 9], [4, 5], [], [7, 8, 9]]
