"""A head start for stage one: SR model and embedding head learn on the untuned LLM's vectors before the LLM moves.

From random SR weights, the first hundreds of stage-one steps teach the SR model what a head on frozen vectors learns in
seconds, at the price of an LLM pass a text. A head start pays that part cheaply, so that every token of stage one
goes where only the LLM can help. First the head learns what texts that the same people liked have in common (taste
contrast), then SR model and head learn from the training samples of both tasks. Text alone: no ids.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lsvcr.data.align_taste import TasteStream
from lsvcr.data.rank import RankData
from lsvcr.data.store import Dataset
from lsvcr.llm.aligned import AlignedHeads
from lsvcr.llm.wide import TasteLoss, TextStates
from lsvcr.models.rank import RankModel
from lsvcr.models.sr import EmbeddingHead, SRModel
from lsvcr.schema import Split, Task
from lsvcr.settings import AlignSettings
from lsvcr.training.rank_batches import EpochBatches, MicroBatch
from lsvcr.training.untuned import untuned_states
from lsvcr.utils.distributed import rank, world_size
from lsvcr.utils.errors import UserError
from lsvcr.utils.logging import get_logger, progress
from lsvcr.utils.seeding import generator, seed_everything

_DROPOUT_STREAM = 51
_MIX_STREAM = 52
_BATCH = 128
"""Samples a process and step."""
_NEGATIVE_COMMENTS = 19
_TASTE_TEXTS = 512
"""Texts of a step of the taste contrast, of all processes together."""
_TASTE_PEOPLE = 2
"""Most people of each of them."""
_WEIGHT_DECAY = 1e-5
_ROWS = 1 << 14
"""Texts that pass through the head at once."""

logger = get_logger(__name__)


def head_start(
    heads: AlignedHeads, dataset: Dataset, settings: AlignSettings, llm: Mapping[str, Any]
) -> None:
    """Train `heads.sr` and `heads.head` in place, the same on every process.

    First `settings.head_start_taste_steps` of the taste contrast, which touch head and adapter alone; then
    `settings.head_start_epochs` with the loss of stage two: softmax over all videos (Rec), over comments of the
    watched video alone (CommRank). Behind a taste contrast the epochs leave the head alone.

    Args:
        heads: float32, on the CPU or a GPU, with the same weights on every process.
        dataset: its folder (or `settings.head_start_vectors`) holds the untuned LLM's `*_full_embs.npy`.
        settings: of stage one.
        llm: whose vectors they must be, see `untuned_states`.

    Raises:
        UserError: the vectors are missing or come from another LLM, dataset or number of layers; too few likes.
    """
    if not settings.head_start_taste_steps and not settings.head_start_epochs:
        return
    tables = untuned_states(dataset, settings, llm)
    heads.train()
    if settings.head_start_taste_steps:
        _learn_taste(heads, dataset, settings, tables)
    if settings.head_start_epochs:
        _learn_ranking(heads, dataset, settings, tables)


def _learn_taste(
    heads: AlignedHeads, dataset: Dataset, settings: AlignSettings, tables: tuple[torch.Tensor, torch.Tensor]
) -> None:
    device = next(heads.parameters()).device
    states = TextStates(*tables, device)
    stream = TasteStream(dataset, None, texts=_TASTE_TEXTS, per_text=_TASTE_PEOPLE, seed=settings.seed)
    if len(stream) < world_size():
        raise UserError(
            f"--head_start_taste_steps {settings.head_start_taste_steps}: nobody in {dataset.root} has liked two texts "
            "before the validation split; give 0"
        )
    assert heads.sr.adapter is not None
    parameters = [*heads.head.parameters(), *heads.sr.adapter.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.head_start_learning_rate, weight_decay=_WEIGHT_DECAY
    )
    contrast = TasteLoss(heads.sr, heads.head)
    with progress(settings.head_start_taste_steps, "taste contrast on frozen text") as bar:
        for number in range(settings.head_start_taste_steps):
            batch = stream.batch(number, rank(), world_size()).to(device)
            loss = contrast(states.rows(batch.codes), batch, states)
            loss.backward()
            _average_gradients(parameters)
            optimizer.step()
            optimizer.zero_grad()
            bar.advance(1, f"loss {float(loss.detach()):.3f}")


def _learn_ranking(
    heads: AlignedHeads, dataset: Dataset, settings: AlignSettings, tables: tuple[torch.Tensor, torch.Tensor]
) -> None:
    head: EmbeddingHead | None = heads.head
    if settings.head_start_taste_steps:  # what the head has learned of taste, ranking would overwrite
        tables = (_text_vectors(heads.head, tables[0]), _text_vectors(heads.head, tables[1]))
        head = None
    parameters = [*heads.sr.parameters(), *(head.parameters() if head else ())]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.head_start_learning_rate, weight_decay=_WEIGHT_DECAY
    )
    data = _training_data(dataset, settings)
    models = {task: _model(heads.sr, head, task, dataset, tables) for task in data}
    device = next(heads.parameters()).device
    steps = sum(-(-len(part) // (_BATCH * world_size())) for part in data.values())
    with progress(steps * settings.head_start_epochs, "head start of the SR model on frozen text") as bar:
        for epoch in range(settings.head_start_epochs):
            seed_everything(settings.seed, _DROPOUT_STREAM, epoch, rank())
            for task, micro in _mixed(data, settings.seed, epoch):
                loss = models[task].training_loss(micro.batch.to(device))["loss"]
                (loss * micro.weight).backward()
                _average_gradients(parameters)
                optimizer.step()
                optimizer.zero_grad()
                bar.advance(1, f"{task.label} loss {float(loss.detach()):.3f}")


@torch.no_grad()
def _text_vectors(head: EmbeddingHead, states: torch.Tensor) -> torch.Tensor:
    """What the head makes of a table: (n + 1, h) -> (n + 1, e) on the head's device."""
    device = next(head.parameters()).device
    return torch.cat([head(part.to(device)) for part in states.split(_ROWS)])


def _training_data(dataset: Dataset, settings: AlignSettings) -> dict[Task, RankData]:
    tasks = list(Task) if settings.tasks == "both" else [Task.parse(settings.tasks)]
    longest = settings.max_position
    return {
        task: RankData(
            dataset, task, Split.TRAIN, max_videos=longest, max_entries=longest, fill_up=False, joint=True
        )
        for task in tasks
    }


def _mixed(data: dict[Task, RankData], seed: int, epoch: int) -> Iterator[tuple[Task, MicroBatch]]:
    """The batches of all tasks in one random order, the same on every process."""
    batches = {
        task: EpochBatches(
            part, batch=_BATCH, accumulation=1, seed=seed, epoch=epoch, negatives=_negatives(task)
        )
        for task, part in data.items()
    }
    turns = [(task, number) for task, part in batches.items() for number in range(len(part))]
    for turn in generator(seed, epoch, _MIX_STREAM).permutation(len(turns)):
        task, number = turns[turn]
        yield task, batches[task][number]


def _negatives(task: Task) -> int:
    return _NEGATIVE_COMMENTS if task is Task.COMM_RANK else 0


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean over processes, in one exchange. What a task does not use has no gradient on any of them."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    joined = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(joined)
    for gradient, mean in zip(gradients, joined.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient) / world_size())


def _model(
    sr: SRModel,
    head: EmbeddingHead | None,
    task: Task,
    dataset: Dataset,
    tables: tuple[torch.Tensor, torch.Tensor],
) -> RankModel:
    model = RankModel(sr, task, *tables, n_videos=dataset.n_videos, n_comments=dataset.n_comments, head=head)
    return model.to(next(sr.parameters()).device).train()
