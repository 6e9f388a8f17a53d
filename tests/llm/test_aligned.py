"""LLM and SR model together: one pass over distinct texts equals the plain computation, sample by sample."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lsvcr.data.align import AlignBatch, AlignCollator
from lsvcr.data.align_samples import AlignSample, CommentEntry, VideoEntry
from lsvcr.data.prompts import PromptBuilder
from lsvcr.data.text_bank import TextBank
from lsvcr.llm import aligned
from lsvcr.llm.aligned import (
    AlignedHeads,
    AlignedModel,
    draw_positions,
    gather_histories,
)
from lsvcr.llm.contrast import CONTRASTED, Vectors, contrast_shares
from lsvcr.llm.encoder import tokenize
from lsvcr.llm.lora import add_lora
from lsvcr.llm.recompute import enable_checkpointing
from lsvcr.models.sr import SRModel
from lsvcr.schema import Task
from lsvcr.utils.seeding import seed_everything

TITLES = ["", "tea at dawn", "late night noodles", "tea at dawn", "a very long walk by the sea", ""]
COMMENTS = ["", "so calm", "hungry now", "again", "what a view", "so calm"]
WIDTH, LENGTHS = 16, (3, 2)


class Table:
    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def take(self, indices: list[int]) -> list[str]:
        return [self.texts[index] for index in indices]


def sample(row: int, videos: list, comments: list, target: int, watched: int = 0) -> AlignSample:
    return AlignSample(
        row=row,
        task=Task.COMM_RANK if watched else Task.REC,
        videos=[VideoEntry(*entry) for entry in videos],
        comments=[CommentEntry(*entry) for entry in comments],
        target=target,
        watched=watched,
        positives=[target],
        comments_first=False,
    )


SAMPLES = [
    sample(0, [(1, 1, 2), (2, 2, 2), (3, 0, 0)], [(1, [1], [1, 2]), (4, [4], [4])], target=4),
    sample(1, [(4, 4, 4)], [(2, [2], [2]), (1, [5], [5, 1, 3])], target=3, watched=1),
    sample(3, [], [(2, [2], [3])], target=1, watched=2),
    sample(2, [(2, 2, 3), (1, 1, 1)], [], target=2),
]


@pytest.fixture
def make(tiny_llm):
    """Builds a model (fp32, LoRA not zero) and a collator."""
    llm, tokenizer = tiny_llm

    def build(dropout: float = 0.0, **changes) -> tuple[AlignedModel, AlignCollator]:
        torch.manual_seed(5)
        sr = SRModel(
            text_width=12, hidden=WIDTH, inner=32, dropout=dropout, attention_dropout=dropout, max_position=9
        )
        heads = AlignedHeads(sr, 32, 12)
        for parameter in heads.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        peft = add_lora(llm, 4, 8, dropout)
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        options = {"pad_id": 0, "text_token_budget": 64, "weights": {"lm": 1.0, "rec": 1.0, "contrast": 0.5}}
        model = AlignedModel(peft, heads, **{**options, **changes})
        bank = TextBank(Table(TITLES), Table(COMMENTS), lambda texts: tokenize(tokenizer, texts, 20))
        prompts = PromptBuilder(tokenizer, language="en", max_source=900, max_target=40, max_text=20)
        return model, AlignCollator(bank, prompts)

    return build


def states(model: AlignedModel, ids: list[int]) -> Tensor:
    """Last hidden states (T, h) of one unpadded sequence."""
    decoder = model.llm.get_base_model().model
    return decoder(input_ids=torch.tensor([ids])).last_hidden_state[0]


def test_every_distinct_text_goes_through_the_llm_once(make, monkeypatch) -> None:
    model, collate = make()
    calls = []
    real = aligned.encode
    monkeypatch.setattr(aligned, "encode", lambda *a, **k: calls.append(a[1]) or real(*a, **k))
    batch = collate(SAMPLES)
    model(batch, None)
    (encoded,) = calls
    seen = {text for text in (*TITLES, *COMMENTS) if text}
    assert len(encoded) == len(set(map(tuple, encoded))) == len(seen) + 1


def test_text_vectors_and_histories_are_those_of_single_texts(make) -> None:
    model, collate = make()
    batch = collate(SAMPLES)
    texts = model.text_vectors(batch.texts)
    for text, vector in zip(batch.texts, texts, strict=True):
        if text:
            mean = states(model, text).mean(0)
            torch.testing.assert_close(vector, model.heads.sr.project(model.heads.head(mean)))
        else:
            assert vector.eq(0).all()
    histories = gather_histories(texts, batch)

    def one(text: str) -> Tensor:
        return texts[batch.texts.index(model_ids(collate, text))]

    torch.testing.assert_close(histories.video_title[0, 1], one("late night noodles"))
    torch.testing.assert_close(histories.video_comment[0, 0], one("hungry now"))
    torch.testing.assert_close(histories.comment_comment[0, 0], (one("so calm") + one("hungry now")) / 2)
    expected = (one("so calm") * 2 + one("again")) / 3  # equal texts count as often as they occur
    torch.testing.assert_close(histories.comment_comment[1, 1], expected)
    assert histories.comment_comment[3].eq(0).all()
    assert histories.video_mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]


def model_ids(collate: AlignCollator, text: str) -> list[int]:
    return collate._prompts.plain(text)


def test_the_user_vector_is_the_state_of_the_last_prompt_token(make) -> None:
    """Computed from the prompt alone: nothing of the response may reach it."""
    model, collate = make()
    batch = collate(SAMPLES)
    vectors = model.vectors(batch, None)
    for row in range(len(batch)):
        tokens, said = batch.sequences[row], batch.response_lengths[row]
        expected = model.heads.contrast(states(model, tokens[:-said])[-1])
        torch.testing.assert_close(vectors.llm_users[row], expected, rtol=1e-4, atol=1e-5)


def test_lm_loss_is_that_of_the_response_alone(make) -> None:
    model, collate = make()
    batch = collate(SAMPLES)
    found = model.vectors(batch, None).lm
    for row in range(len(batch)):
        tokens, said = torch.tensor(batch.sequences[row]), batch.response_lengths[row]
        logits = model.llm(input_ids=tokens[None]).logits[0]
        expected = F.cross_entropy(logits[-said - 1 : -1], tokens[-said:])
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


def test_a_sample_alone_has_the_vectors_it_has_in_a_batch(make) -> None:
    """Neither padding nor company nor the order of the tasks changes anything."""
    model, collate = make()
    together = model.vectors(collate(SAMPLES), None)
    backwards = model.vectors(collate(SAMPLES[::-1]), None)
    for row, single in enumerate(SAMPLES):
        alone = model.vectors(collate([single]), None)
        for name in ("users", "others", "llm_users", "targets", "lm"):
            own = getattr(together, name)[row]
            torch.testing.assert_close(getattr(alone, name)[0], own, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(getattr(backwards, name)[-1 - row], own, rtol=1e-4, atol=1e-5)


def test_own_and_other_history_by_task(make) -> None:
    model, collate = make()
    batch = collate(SAMPLES)
    vectors = model.vectors(batch, None)
    texts = model.text_vectors(batch.texts)
    sr = model.heads.sr
    encoded = sr.encode(gather_histories(texts, batch))
    watched = texts[batch.watched]
    for row in (0, 3):  # Rec
        torch.testing.assert_close(vectors.users[row], sr.rec_user(encoded)[row])
        torch.testing.assert_close(vectors.others[row], sr.rec_other(encoded)[row])
    for row in (1, 2):  # CommRank
        torch.testing.assert_close(vectors.users[row], sr.comm_rank_user(encoded, watched)[row])
        torch.testing.assert_close(vectors.others[row], sr.comm_rank_other(encoded, watched)[row])
    torch.testing.assert_close(vectors.targets, texts[batch.target])


def test_total_is_the_weighted_sum_of_named_parts(make) -> None:
    model, collate = make(weights={"lm": 2.0, "rec": 3.0, "contrast": 0.25})
    parts = model(collate(SAMPLES), None)
    assert parts.pop("directions").shape == (2, WIDTH)
    assert set(parts) == {"loss", "lm", "rec", "behaviour", "preference"}
    assert all(value.dtype == torch.float32 and value.ndim == 0 for value in parts.values())
    expected = 2 * parts["lm"] + 3 * parts["rec"] + 0.25 * (parts["behaviour"] + parts["preference"])
    torch.testing.assert_close(parts["loss"], expected)


@pytest.mark.parametrize("rows", [[0], [1], [0, 3], [1, 2]])
def test_every_parameter_takes_part_whatever_the_tasks_of_a_batch(make, rows: list[int]) -> None:
    """ZeRO reduces gradients in the order they come: a parameter that one process leaves out shifts the others."""
    model, collate = make()
    model(collate([SAMPLES[row] for row in rows]), None)["loss"].backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_batch_without_any_text_or_history_is_finite(make) -> None:
    model, collate = make()
    blank = [sample(0, [], [], target=5), sample(2, [(5, 0, 0)], [], target=5)]
    losses = model(collate(blank), None)
    losses["loss"].backward()
    assert all(torch.isfinite(value).all() for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_same_target_is_no_negative(make) -> None:
    """Two samples with one target, or with targets of one text, do not push it away."""
    model, collate = make()
    twins = [sample(0, [(2, 0, 0)], [], target=1), sample(2, [(4, 0, 0)], [], target=3)]  # both "tea at dawn"
    assert float(model(collate(twins), None)["rec"].detach()) == pytest.approx(0.0, abs=1e-6)


def grads(model: AlignedModel) -> dict[str, Tensor]:
    """Gradients by name, taken away from the model."""
    taken = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("recompute", [None, "selective"])
def test_a_contrast_over_micro_batches_has_the_gradient_of_one_over_all(
    make, dropout: float, recompute
) -> None:
    model, collate = make(dropout=dropout)
    if recompute:
        enable_checkpointing(model.llm, recompute)
    model.train()
    # Sample 0's target is another positive of the last one, whose keys are more than the others'.
    knows = dataclasses.replace(sample(2, [(2, 2, 3)], [], target=2), positives=[1, 2, 4])
    batches = [collate(SAMPLES[:2]), collate([SAMPLES[2], knows])]

    def read(place: int) -> Vectors:
        seed_everything(place)
        return model.vectors(batches[place], None)

    both = [read(0), read(1)]
    names = [*CONTRASTED, "lm"]
    joined = Vectors(**{name: torch.cat([getattr(one, name) for one in both]) for name in names})
    whole = model.losses(joined, collate([*SAMPLES[:2], SAMPLES[2], knows]))
    whole["loss"].backward()
    expected = grads(model)

    shares = contrast_shares(model.contrasts, model.contrast_total, batches, read)
    assert grads(model) == {}  # the first pass leaves none
    values = []
    for place, share in enumerate(shares):
        seed_everything(place)
        losses = model(batches[place], None, share=share)
        (losses["loss"] / 2).backward()
        values.append(losses)
    found = grads(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2
    for name in ("rec", "behaviour", "preference"):
        assert values[0][name] == values[1][name] == pytest.approx(whole[name].item(), rel=1e-5)
    for name in ("loss", "lm"):
        mean = sum(losses[name].item() for losses in values) / 2
        assert mean == pytest.approx(whole[name].item(), rel=1e-5)
    within = sum(model(batch, None)["rec"].item() for batch in batches) / 2
    assert within < whole["rec"].item() - 0.1  # fewer negatives: it is another loss


def test_directions_are_sums_of_unit_user_vectors(make) -> None:
    model, collate = make()
    batch = collate(SAMPLES)
    vectors = model.vectors(batch, None)
    expected = [F.normalize(side, dim=1).sum(0) for side in (vectors.users, vectors.llm_users)]
    found = model(batch, None)["directions"]
    torch.testing.assert_close(found, torch.stack(expected))
    assert not found.requires_grad


def test_positions_are_random_increasing_and_the_same_for_any_padding(make) -> None:
    _, collate = make()
    wide, narrow = collate(SAMPLES), collate(SAMPLES[1:2])
    drawn = [draw_positions(batch, LENGTHS, 9, 1, 5) for batch in (wide, narrow)]
    for full, short in zip(*drawn, strict=True):
        assert full.diff().gt(0).all()
        assert full.max() < 9
        assert torch.equal(full[: len(short)], short)
    many = torch.stack([draw_positions(wide, LENGTHS, 9, 1, step)[0] for step in range(300)])
    assert set(many.flatten().tolist()) == set(range(9))
    assert not torch.equal(draw_positions(wide, LENGTHS, 9, 1, 6)[0], drawn[0][0])


def test_positions_reach_the_model(make) -> None:
    model, collate = make()
    batch = collate(SAMPLES)
    standard = model.vectors(batch, None).users
    same = model.vectors(batch, (torch.arange(3), torch.arange(2))).users
    other = model.vectors(batch, (torch.tensor([1, 4, 8]), torch.tensor([0, 5]))).users
    torch.testing.assert_close(standard, same)
    assert not torch.allclose(standard, other)


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_checkpointing_changes_no_gradient(make, recompute: str) -> None:
    model, collate = make()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            enable_checkpointing(model.llm, recompute)
            assert model.llm.get_base_model().model.gradient_checkpointing
        model.zero_grad()
        model.train()(collate(SAMPLES), None)["loss"].backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


class Dear(TorchDispatchMode):
    """Counts large matrix products and attention as they are really computed."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.attention = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.products += min(args[-2].shape[1], args[-1].shape[1]) > 4
        self.attention += "scaled_dot_product" in str(op) and "backward" not in str(op)
        return op(*args, **(kwargs or {}))


def test_selective_checkpointing_repeats_nothing_dear(make) -> None:
    model, collate = make()
    texts, forward, backward = collate(SAMPLES).texts, {}, {}
    for recompute in (None, "selective", "full"):
        if recompute:
            enable_checkpointing(model.llm, recompute)
        with Dear() as forward[recompute]:
            loss = model.train().pooled(texts).square().sum()
        with Dear() as backward[recompute]:
            loss.backward()
    attended = forward[None].attention
    assert attended > 0
    assert [backward[mode].attention for mode in (None, "selective", "full")] == [0, 0, attended]
    # A layer's seven products: q, k, v, o, gate, up, down. Only full checkpointing computes them again.
    assert backward["full"].products - backward["selective"].products == 7 * attended


def test_heads_compute_in_float32_in_a_bf16_model(make) -> None:
    model, collate = make()
    model.to(torch.bfloat16)
    vectors = model.vectors(collate(SAMPLES), None)
    for name in ("users", "others", "llm_users", "targets", "lm"):
        assert getattr(vectors, name).dtype == torch.float32, name
    # Not rounded to bf16 anywhere behind the LLM.
    assert not torch.equal(vectors.users, vectors.users.bfloat16().float())


def test_loss_falls_in_twenty_steps(make) -> None:
    model, collate = make()
    batch: AlignBatch = collate(SAMPLES)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(20):
        loss = model(batch, None)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
