"""What the trainer and the evaluator ask of a recommender."""

from abc import ABC, abstractmethod
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

Batch = TypeVar("Batch", contravariant=True)


@runtime_checkable
class Recommender(Protocol[Batch]):
    """A model over one kind of batch. The score of an item for a user is the inner product of their vectors.

    A model that ranks by cosine returns item vectors of length 1 (and may do so for users).
    """

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars: `loss` is the one to minimise, every other entry a named part of it for the log."""
        ...

    def user_vectors(self, batch: Batch) -> Tensor:
        """(B, d) float32, one for each sample of the batch, in its order."""
        ...

    def item_vectors(self) -> Tensor:
        """(N + 1, d) float32 by item index; row 0 is padding, which the evaluator never ranks."""
        ...


class TrainedModel(nn.Module, ABC):
    """Base of a recommender that the loop trains: the loop calls the module, which gives its `training_loss`."""

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """The same as `training_loss`: what data-parallel wrappers call."""
        return self.training_loss(batch)

    @abstractmethod
    def training_loss(self, batch: Any) -> dict[str, Tensor]:
        """As `Recommender.training_loss`, on a batch of the recommender's own training rows."""
