"""The SR model against the plain implementation, and what must not change its vectors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lsvcr.models.sr import EmbeddingHead, Histories, SRModel, random_positions
from lsvcr.nn.similarity import cosine_logits
from tests.models.sr_world import (
    LENGTHS,
    N_VIDEOS,
    WIDTH,
    all_vectors,
    entries,
    make_histories,
    make_model,
    make_watched,
    select,
)
from tests.reference import sr_plain

POSITIONS = (torch.tensor([0, 2, 3, 7, 8]), torch.tensor([1, 2, 5, 6]))


def plain_vectors(model: SRModel, histories, watched, positions=None) -> np.ndarray:
    parameters = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    rows = None if positions is None else [p.tolist() for p in positions]
    out = []
    for user in range(len(watched)):
        videos, comments = entries(histories, user)
        asked = watched[user].numpy()
        out.append(
            [
                sr_plain.rec_user(parameters, 2, videos, comments, rows),
                sr_plain.rec_other(parameters, 2, videos, comments, rows),
                sr_plain.comm_rank_user(parameters, 2, videos, comments, asked, rows),
                sr_plain.comm_rank_other(parameters, 2, videos, comments, asked, rows),
            ]
        )
    return np.swapaxes(np.array(out), 0, 1)


@pytest.mark.parametrize("n_videos", [0, N_VIDEOS], ids=["stage one", "stage two"])
@pytest.mark.parametrize("positions", [None, POSITIONS], ids=["in order", "drawn positions"])
def test_vectors_equal_the_plain_implementation(n_videos, positions):
    model, histories, watched = make_model(n_videos=n_videos), make_histories(), make_watched()
    with torch.no_grad():
        found = all_vectors(model, histories, watched, positions)
    expected = plain_vectors(model, histories, watched, positions)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-11)


def test_single_precision_stays_near_the_plain_implementation():
    model, histories, watched = make_model(), make_histories(), make_watched()
    expected = plain_vectors(model, histories, watched)
    single = make_histories(dtype=torch.float32)
    with torch.no_grad():
        found = all_vectors(model.float(), single, watched.float())
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-5)


def test_states_equal_the_plain_implementation_at_every_real_step():
    model, histories = make_model(), make_histories()
    parameters = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    with torch.no_grad():
        states = model.encode(histories)
    for user in range(len(LENGTHS)):
        video, comment = sr_plain.states(parameters, 2, *entries(histories, user))
        np.testing.assert_allclose(states.video[user, : len(video)].numpy(), video, atol=1e-11)
        np.testing.assert_allclose(states.comment[user, : len(comment)].numpy(), comment, atol=1e-11)


def test_a_user_alone_has_the_vectors_it_has_in_a_batch():
    model, histories, watched = make_model(), make_histories(), make_watched()
    together = all_vectors(model, histories, watched)
    for user, pair in enumerate(LENGTHS):
        alone = select(make_histories(), [user])
        for name in ("video_title", "video_comment", "video_ids", "video_mask"):
            setattr(alone, name, getattr(alone, name)[:, : pair[0]])  # width 0 for an empty history
        for name in ("comment_title", "comment_comment", "comment_video_ids", "comment_mask"):
            setattr(alone, name, getattr(alone, name)[:, : pair[1]])
        single = all_vectors(model, alone, watched[user : user + 1])
        torch.testing.assert_close(single[:, 0], together[:, user], rtol=0, atol=1e-12)


@pytest.mark.parametrize("extra", [1, 4])
def test_padding_width_and_content_change_nothing(extra):
    model, watched = make_model(), make_watched()
    narrow, wide = make_histories(), make_histories(extra=extra)
    wide.video_title[~wide.video_mask] = 1e6
    wide.comment_comment[~wide.comment_mask] = -1e6
    torch.testing.assert_close(
        all_vectors(model, wide, watched), all_vectors(model, narrow, watched), rtol=0, atol=1e-12
    )


def test_later_entries_do_not_change_earlier_states_of_their_own_history():
    model = make_model()
    whole = make_histories([(5, 4)])
    changed = replace(whole, video_title=whole.video_title.clone())
    changed.video_title[0, 3:] += 1.0
    with torch.no_grad():
        before, after = model._encode_each(whole, None).video, model._encode_each(changed, None).video
    assert torch.equal(before[0, :3], after[0, :3])
    assert not torch.allclose(before[0, 3:], after[0, 3:])


def test_order_of_the_history_matters():
    model, whole = make_model(), make_histories([(4, 3)])
    turned = replace(whole, video_title=whole.video_title.flip(1), video_ids=whole.video_ids.flip(1))
    assert not torch.allclose(model.rec_vectors(whole), model.rec_vectors(turned))


def test_the_other_history_reaches_the_vector_even_of_an_empty_own_history():
    model = make_model()
    first, second = make_histories([(0, 3)], seed=1), make_histories([(0, 3)], seed=2)
    assert not torch.allclose(model.rec_vectors(first), model.rec_vectors(second))


def test_short_ways_equal_the_long_ones():
    model, histories, watched = make_model(), make_histories(), make_watched()
    states = model.encode(histories)
    torch.testing.assert_close(model.rec_vectors(histories), model.rec_user(states))
    torch.testing.assert_close(
        model.comm_rank_vectors(histories, watched), model.comm_rank_user(states, watched)
    )


def test_empty_histories_give_finite_vectors_scores_and_gradients():
    model = make_model(dtype=torch.float32).train()
    histories, watched = make_histories(dtype=torch.float32), make_watched(dtype=torch.float32)
    vectors = all_vectors(model, histories, watched)
    items = model.video_vectors(torch.zeros(13, WIDTH), torch.arange(13))
    scores = cosine_logits(vectors.flatten(0, 1), items, model.temperature)
    assert vectors.isfinite().all() and scores.isfinite().all()
    scores[:, 1:].logsumexp(dim=1).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_without_comments_the_comment_side_is_ignored():
    model, watched = make_model(use_comments=False), make_watched()
    first, second = make_histories(), make_histories(seed=5)
    second = replace(
        second,
        video_title=first.video_title,
        video_ids=first.video_ids,
    )
    torch.testing.assert_close(all_vectors(model, first, watched), all_vectors(model, second, watched))
    assert all_vectors(model, first, watched).isfinite().all()


def test_without_text_only_ids_count():
    model = make_model(use_text=False, n_comments=4)
    text = torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(model.project(text), torch.zeros(3, WIDTH, dtype=torch.float64))
    ids = torch.tensor([0, 2, 4])
    assert torch.equal(model.comment_vectors(model.project(text), ids), model.comment_id(ids))
    with pytest.raises(ValueError, match="n_videos"):
        SRModel(use_text=False)


def test_item_vectors_are_text_plus_gated_id():
    model = make_model()
    projected, ids = torch.randn(2, WIDTH, dtype=torch.float64), torch.tensor([3, 0])
    found = model.video_vectors(projected, ids)
    torch.testing.assert_close(found[0], projected[0] + model.gate * model.video_id.weight[3])
    assert torch.equal(found[1], projected[1])
    assert torch.equal(model.video_vectors(projected), projected)
    assert torch.equal(make_model(n_videos=0).video_vectors(projected, ids), projected)


def test_start_values_are_as_documented():
    torch.manual_seed(0)
    model = SRModel(text_width=64, n_videos=5000, n_comments=10)
    assert model.gate.item() == 1.0
    assert model.video_id.weight[0].abs().sum() == 0 and model.comment_id.weight[0].abs().sum() == 0
    assert model.video_id.weight[1:].std().item() == pytest.approx(0.02, rel=0.02)
    assert model.adapter.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            assert value.abs().sum() == 0, name
        if "norm.weight" in name:
            assert torch.equal(value, torch.ones_like(value)), name


def test_a_published_start_is_noise_alone():
    """What `start_near_identity` adds is the identity, nowhere else, and it can be left out."""
    started = []
    for near in (False, True):
        torch.manual_seed(0)
        started.append(SRModel(text_width=16, hidden=16, start_near_identity=near).state_dict())
    noise, ours = started
    same, nothing = torch.eye(16), torch.zeros(16, 16)
    added = {
        "merge.weight": torch.cat([same, same], dim=1),
        "video_join.weight": torch.cat([same, nothing], dim=1),
        "comment_join.weight": torch.cat([same, nothing], dim=1),
        "comm_rank_attention.value.weight": same,
        "comm_rank_attention.output.weight": same,
    }
    for name, value in noise.items():
        torch.testing.assert_close(ours[name], value + added.get(name, 0.0), msg=name)
        if name.endswith("weight") and "norm" not in name:
            assert value.std().item() == pytest.approx(0.02, rel=0.4), name


@pytest.mark.parametrize("comments", [True, False])
def test_a_fresh_user_vector_lies_near_the_titles_of_the_history(comments):
    """Text alone could not be learned from noise: a user must resemble what they liked before any training."""
    torch.manual_seed(0)
    model = SRModel(text_width=32, use_comments=comments).eval()
    nearest = 0
    for own in range(20):
        texts = torch.nn.functional.normalize(torch.randn(20, 32), dim=-1)
        titles = model.project(texts)
        history = titles[own].expand(1, 3, -1)
        mask = torch.ones(1, 3, dtype=torch.bool)
        ids = torch.zeros(1, 3, dtype=torch.int64)
        empty = torch.zeros_like(history)
        user = model.rec_vectors(Histories(history, empty, ids, mask, empty, empty, ids, ~mask))
        nearest += int(cosine_logits(user, titles, model.temperature).argmax() == own)
    assert nearest >= 15  # by chance 1


def test_a_fresh_user_vector_for_comments_lies_near_the_comments_of_the_history():
    torch.manual_seed(0)
    model = SRModel(text_width=32).eval()
    nearest = 0
    for own in range(20):
        contents = model.project(torch.nn.functional.normalize(torch.randn(20, 32), dim=-1))
        title = model.project(torch.nn.functional.normalize(torch.randn(1, 32), dim=-1))
        history = contents[own].expand(1, 3, -1)
        mask = torch.ones(1, 3, dtype=torch.bool)
        ids = torch.zeros(1, 3, dtype=torch.int64)
        empty = torch.zeros_like(history)
        histories = Histories(empty, empty, ids, ~mask, title.expand(1, 3, -1), history, ids, mask)
        user = model.comm_rank_vectors(histories, title)
        nearest += int(cosine_logits(user, contents, model.temperature).argmax() == own)
    assert nearest >= 10  # by chance 1


def test_arguments_rebuild_the_same_model():
    model = SRModel(hidden=16, heads=4, n_videos=3, use_comments=False)
    again = SRModel(**model.arguments)
    assert {n: v.shape for n, v in again.state_dict().items()} == {
        n: v.shape for n, v in model.state_dict().items()
    }
    assert again.arguments == model.arguments and again.use_comments is False


def test_stage_two_adds_only_the_id_table_and_the_gate():
    one, two = SRModel(), SRModel(n_videos=5)
    assert two.state_dict().keys() - one.state_dict().keys() == {"video_id.weight", "gate"}
    assert one.state_dict().keys() <= two.state_dict().keys()


def test_histories_longer_than_the_position_table_raise():
    with pytest.raises(ValueError, match="10 steps is longer than max_position = 9"):
        make_model().encode(make_histories([(3, 3)], extra=7))


def test_drawn_positions_are_an_increasing_subset_that_reaches_all_rows():
    seen = set()
    for seed in range(60):
        drawn = random_positions(5, 12, np.random.default_rng((7, seed)))
        assert drawn.dtype == torch.int64 and torch.all(drawn[1:] > drawn[:-1])
        seen |= set(drawn.tolist())
    assert seen == set(range(12))
    assert torch.equal(random_positions(12, 12, np.random.default_rng(0)), torch.arange(12))
    assert random_positions(0, 12, np.random.default_rng(0)).shape == (0,)
    again = random_positions(5, 12, np.random.default_rng((7, 3)))
    assert torch.equal(again, random_positions(5, 12, np.random.default_rng((7, 3))))
    with pytest.raises(ValueError, match="max_position"):
        random_positions(13, 12, np.random.default_rng(0))


def test_embedding_head_keeps_rows_without_text_zero():
    torch.manual_seed(0)
    head = EmbeddingHead(32, 6)
    with torch.no_grad():
        head.outer.bias.fill_(1.0)
    pooled = torch.randn(3, 32)
    pooled[1] = 0
    found = head(pooled)
    assert found.shape == (3, 6) and torch.equal(found[1], torch.zeros(6))
    inner = torch.nn.functional.gelu(pooled @ head.inner.weight.T + head.inner.bias)
    torch.testing.assert_close(found[[0, 2]], (inner @ head.outer.weight.T + 1.0)[[0, 2]])
    assert head.inner.weight.shape == (8, 32)


@pytest.mark.parametrize("n_videos", [0, N_VIDEOS])
def test_gradients_are_those_of_the_formulas(n_videos):
    model, watched = make_model(layers=1, n_videos=n_videos), make_watched(3)
    base = make_histories([(3, 2), (0, 1), (2, 0)])

    def vectors(title: torch.Tensor, comment: torch.Tensor) -> torch.Tensor:
        return all_vectors(model, replace(base, video_title=title, comment_comment=comment), watched)

    title = base.video_title.clone().requires_grad_()
    comment = base.comment_comment.clone().requires_grad_()
    assert torch.autograd.gradcheck(vectors, (title, comment))


def test_padding_gets_no_gradient():
    model, histories, watched = make_model(), make_histories(), make_watched()
    histories.video_title.requires_grad_()
    all_vectors(model, histories, watched).pow(2).sum().backward()
    grad = histories.video_title.grad
    assert grad[~histories.video_mask].abs().sum() == 0
    assert (grad[histories.video_mask].abs().sum(dim=-1) > 0).all()
    assert model.video_id.weight.grad[0].abs().sum() == 0


def test_standardised_head_does_not_see_what_all_texts_share() -> None:
    torch.manual_seed(0)
    texts = torch.randn(64, 8)
    texts[0] = 0
    shifted = torch.where((texts != 0).any(-1, keepdim=True), 5 * texts + 300, texts)
    plain, moved = EmbeddingHead(8, 4), EmbeddingHead(8, 4)
    moved.load_state_dict(plain.state_dict())
    plain.standardise(texts)
    moved.standardise(shifted)
    assert torch.allclose(plain(texts), moved(shifted), atol=2e-3)
    assert torch.equal(moved(shifted)[0], torch.zeros(4))
    assert torch.equal(moved.center, moved.center.bfloat16().float())
