"""HLLM (Chen et al. 2024, arXiv 2409.12740): an item LLM reads texts, the blocks of a user LLM read the items of a
history, and both learn together from the item that comes next.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsvcr.data.rank import RankBatch
from lsvcr.data.rank_joined import JoinedBatch
from lsvcr.llm.encoder import token_budget_batches
from lsvcr.llm.families import backbone
from lsvcr.llm.item_encoder import encode_ends
from lsvcr.llm.item_tokens import TokenTable
from lsvcr.losses.nce import false_negatives, learned_scale, nce, sampled_nce, start_log_scale
from lsvcr.nn.similarity import unit
from lsvcr.schema import PAD
from lsvcr.utils.distributed import gather_values, gather_with_gradient, rank, world_size

_ONE_BATCH = 1 << 40
"""Tokens of what is a batch already, whatever learned tokens are added."""

LEAST_SCALE = 1e-3
"""Least standard deviation that a state's number is divided by."""


class HllmHeads(nn.Module):
    """What trains beside the LLMs: projection, temperature, learned tokens. Computed in float32 whatever precision
    the parameters are kept in.

    The item LLM's states share one large component in which their cosines drown, so they are standardised first by
    fixed statistics; what the user LLM reads has the size of the token embeddings that its blocks were trained on.

    Args:
        item_width, user_width: h of the item LLM and d of the user LLM.
        tokens: learned tokens; 0 = none.
        sizes: root mean squares of the token embeddings of both LLMs.
    """

    center: Tensor
    scale: Tensor
    size: Tensor

    def __init__(self, item_width: int, user_width: int, tokens: int, sizes: tuple[float, float]) -> None:
        super().__init__()
        self.project = nn.Linear(item_width, user_width)
        # Angles between items are kept.
        nn.init.orthogonal_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.log_scale = nn.Parameter(start_log_scale().view(1))
        self.tokens = nn.Parameter(torch.randn(tokens, item_width) * sizes[0]) if tokens else None
        self.register_buffer("center", torch.zeros(item_width))
        self.register_buffer("scale", torch.ones(item_width))
        self.register_buffer("size", torch.tensor([sizes[1]]).bfloat16().float())

    def standardise(self, states: Tensor) -> None:
        """Fix center and scale to mean and standard deviation of (N, h), N from 2, rounded to bfloat16, so that a model
        kept in that precision has the same ones."""
        self.center.copy_(states.float().mean(dim=0).bfloat16())
        self.scale.copy_(states.float().std(dim=0).clamp(min=LEAST_SCALE).bfloat16())

    def learned_tokens(self) -> Tensor:
        """(n, h), (0, h) without any."""
        return self.center.new_zeros(0, len(self.center)) if self.tokens is None else self.tokens

    def items(self, states: Tensor) -> Tensor:
        """Item vectors of the item LLM's states: (N, h) -> (N, d) float32. A row of zeros (no text) stays one."""
        some_text = states.abs().amax(dim=-1, keepdim=True) > 0
        standard = (states.float() - self.center.float()) / self.scale.float()
        return F.linear(standard, self.project.weight.float(), self.project.bias.float()) * some_text

    def inputs(self, vectors: Tensor) -> Tensor:
        """What the user LLM reads of item vectors (..., d): float32."""
        size = vectors.pow(2).mean(dim=-1, keepdim=True).clamp(min=LEAST_SCALE**2).rsqrt()
        return vectors * size * self.size.float()


class HllmModel(nn.Module):
    """Item LLM, user LLM and `HllmHeads`; a forward pass gives the loss of a micro-batch.

    As a recommender (`user_vectors`, `item_vectors`) it is used in evaluation mode.

    Args:
        item_llm: causal LM or a `PeftModel` around one, without output head.
        user_llm: the same without any vocabulary.
        heads: see there.
        texts: of all videos.
        pad_id: of the item LLM's vocabulary.
        budget: tokens of one batch of texts in training, padding included.
        reading_budget: the same where the whole catalogue is read.
    """

    def __init__(
        self,
        item_llm: nn.Module,
        user_llm: nn.Module,
        heads: HllmHeads,
        texts: TokenTable,
        *,
        pad_id: int,
        budget: int,
        reading_budget: int,
    ) -> None:
        super().__init__()
        self.item_llm, self.user_llm, self.heads = item_llm, user_llm, heads
        self._texts, self._pad_id = texts, pad_id
        self._budget, self._reading_budget = budget, reading_budget
        self._known: Tensor | None = None  # (N + 1, h) states that never change
        self._catalogue: Tensor | None = None  # (N + 1, d) item vectors, in evaluation

    def train(self, mode: bool = True) -> "HllmModel":
        """In training item vectors change."""
        if mode:
            self._catalogue = None
        return super().train(mode)

    def freeze_items(self) -> None:
        """Read the catalogue once for all: for an item LLM that does not train and learned tokens that are not there.
        Every process must call it."""
        self._known = self.catalogue_states()

    def forward(self, batch: JoinedBatch) -> dict[str, Tensor]:
        """Scalars of a micro-batch: `loss`, weighted as `JoinedBatch.weight` says, and for the log `negatives`, how
        many a target has on average, and `scale`, what multiplies the cosines.

        Also `directions`, (2, d) without gradient: the means of the unit vectors of users and of items, times the
        users.
        """
        vectors = self.batch_items(batch.items)  # (N, d)

        def chosen(videos: Tensor) -> Tensor:
            return F.embedding(torch.searchsorted(batch.items, videos), vectors)

        real = batch.targets != PAD
        read = chosen(batch.video_ids.where(real, batch.items[0]))  # (B, L, d)
        queries = self._states(read, real)[real]  # (P, d)
        targets, owners = batch.targets[real], real.nonzero()[:, 0]
        histories = torch.cat([batch.video_ids[:, :1], batch.targets], dim=1)
        log_scale = self.heads.log_scale.float()[0]
        others = batch.negatives if len(batch.negatives) else batch.keys
        keys, drop = chosen(others), false_negatives(others, histories, owners)
        if len(batch.negatives):
            loss = sampled_nce(queries, chosen(targets), keys, log_scale, drop)
        else:
            loss = nce(queries, keys, torch.searchsorted(others, targets), log_scale, drop)
        sides = [unit(side.detach()).mean(dim=0) * len(batch) for side in (queries, keys)]
        return {
            "loss": loss * batch.weight,
            "negatives": (~drop).sum(dim=1).float().mean(),
            "scale": learned_scale(log_scale.detach()),
            "directions": torch.stack(sides),
        }

    def tokens_of(self, batch: JoinedBatch) -> int:
        """Tokens of a micro-batch's texts that one process reads, on average, and items that its user LLM reads."""
        texts = 0 if self._known is not None else int(self._texts.lengths[batch.items.cpu().numpy()].sum())
        return texts // world_size() + int((batch.targets != PAD).sum())

    def batch_items(self, videos: Tensor) -> Tensor:
        """Vectors of distinct videos (N,), the same on every process: (N, d) float32.

        Each process reads its share of the texts, and the shares are exchanged with their gradients.
        """
        if self._known is not None:
            return self.heads.items(self._known[videos])
        ids = videos.cpu().numpy()
        # Dealt out by length, so that all read about as much.
        order = np.argsort(-self._texts.lengths[ids], kind="stable")
        shares = [order[place :: world_size()] for place in range(world_size())]
        mine = self._read(ids[shares[rank()]], self._budget)
        together = gather_with_gradient(mine)
        back = torch.from_numpy(np.argsort(np.concatenate(shares))).to(videos.device)
        return self.heads.items(together[back])

    @torch.no_grad()
    def catalogue_states(self) -> Tensor:
        """The item LLM's states of all videos, (N + 1, h) float32, row 0 is zero. Every process must call it.

        Batches of texts are the same for any number of processes, each of which reads every n-th; all read equally
        many, as weights that are cut among them need.
        """
        batches = token_budget_batches(self._texts.lengths, self._reading_budget)
        mine = batches[rank() :: world_size()]
        turns = -(-len(batches) // world_size())
        read = [self._read(batch, _ONE_BATCH) for batch in [*mine, *batches[:1] * (turns - len(mine))]][
            : len(mine)
        ]
        width, device = len(self.heads.center), self.heads.center.device
        states = gather_values(torch.cat([*read, torch.zeros(0, width, device=device)]))
        numbers = np.concatenate([*mine, np.zeros(0, dtype=np.int64)])
        owners = gather_values(torch.from_numpy(numbers).to(device))
        table = torch.zeros(len(self._texts), width, device=device)
        table[owners] = states
        return table

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """(N + 1, d) float32 unit vectors by video; row 0 is padding. Every process must call it."""
        states = self.catalogue_states() if self._known is None else self._known
        self._catalogue = self.heads.items(states)
        return unit(self._catalogue)

    @torch.no_grad()
    def user_vectors(self, batch: RankBatch) -> Tensor:
        """(B, d) float32: the state of the latest video."""
        if self._catalogue is None:
            self.item_vectors()
        assert self._catalogue is not None
        real = batch.video_ids != PAD
        states = self._states(self._catalogue[batch.video_ids], real)
        latest = (real.sum(dim=1) - 1).clamp(min=0)
        return states[torch.arange(len(states), device=states.device), latest].float()

    def _states(self, vectors: Tensor, real: Tensor) -> Tensor:
        """(B, L, d) of item vectors (B, L, d) of which `real` (B, L) bool are no padding: that is on the right, where
        no real step sees it."""
        inputs = self.heads.inputs(vectors) * real[..., None]
        dtype = next(self.user_llm.parameters()).dtype
        states: Tensor = backbone(self.user_llm)(
            inputs_embeds=inputs.to(dtype), use_cache=False
        ).last_hidden_state
        return states

    def _read(self, videos: np.ndarray, budget: int) -> Tensor:
        """(n, h) float32 states of videos (n,)."""
        tokens = self.heads.learned_tokens()
        return encode_ends(
            self.item_llm, self._texts.take(videos), tokens, pad_id=self._pad_id, budget=budget
        )
