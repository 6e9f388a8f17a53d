"""Multi-head attention and the post-LayerNorm transformer layer around it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsvcr.nn.dropout import Dropout

INITIAL_STD = 0.02
"""Standard deviation of fresh linear and embedding weights."""

LAYER_NORM_EPS = 1e-8
"""The method gives this value for the input norms; every other LayerNorm here uses the same."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, dropout: Dropout, *, visible: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Scaled dot-product attention with dropout of its weights: (B, H, L, D / H).

    Args:
        q: (B, H, L, D / H).
        k, v: (B, H, K, D / H).
        dropout: of the weights, in its own mode.
        visible: (B, 1, 1, K) bool, True = seen, with one in every row; None = all are.
        causal: each query sees the keys up to its own place.
    """
    p = dropout.p if dropout.training else 0.0
    if p and q.device.type == "cpu":
        return _attend_on_cpu(q, k, v, dropout, visible, causal)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=p, is_causal=causal)


def _attend_on_cpu(
    q: Tensor, k: Tensor, v: Tensor, dropout: Dropout, visible: Tensor | None, causal: bool
) -> Tensor:
    """The same with dropout of weights, for which torch has no fused kernel on a CPU, and draws its mask slowly."""
    rows, heads = q.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (B H, L, D / H)
    hidden = q.new_zeros(1, 1, 1)
    if causal:
        hidden = torch.full((q.shape[1], k.shape[1]), -torch.inf).triu(1)[None].to(q.dtype)
    if visible is not None:
        padding = q.new_zeros(visible.shape).masked_fill(~visible, -torch.inf)  # (B, 1, 1, K)
        hidden = hidden + padding.flatten(0, 2)[:, None].repeat_interleave(heads, dim=0)
    scores = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    weights: Tensor = dropout(scores.softmax(dim=-1))
    return (weights @ v).unflatten(0, (rows, heads))


class MultiHeadAttention(nn.Module):
    """Attention, output projection, dropout, residual and LayerNorm (post-norm), after Vaswani et al. 2017.

    Args:
        width: D, a multiple of `heads`.
        heads: H.
        dropout: on the projected output.
        attention_dropout: on the attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} attention heads")
        self.heads = heads
        self.attention_dropout = Dropout(attention_dropout)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, queries: Tensor, keys: Tensor, key_mask: Tensor) -> Tensor:
        """Let every query see all real keys.

        Args:
            queries: (B, L, D).
            keys: (B, K, D); they are the values too.
            key_mask: (B, K) bool, True = real.

        Returns:
            (B, L, D). In a row without a real key the attended part is zero, so the result is finite and
            does not depend on the padding.
        """
        some_key = key_mask.any(dim=1, keepdim=True)  # (B, 1)
        visible = (key_mask | ~some_key)[:, None, None, :]  # (B, 1, 1, K), no row is all False
        context = self._attend(queries, keys, visible=visible, causal=False)
        return self._finish(queries, context * some_key.unsqueeze(-1).to(context.dtype))

    def causal(self, states: Tensor) -> Tensor:
        """Let every step of (B, L, D) see itself and the earlier ones; -> (B, L, D).

        Needs no padding mask: with padding on the right no real step sees any of it.
        """
        return self._finish(states, self._attend(states, states, visible=None, causal=True))

    def _attend(self, queries: Tensor, keys: Tensor, *, visible: Tensor | None, causal: bool) -> Tensor:
        q, k, v = self._split(self.query(queries)), self._split(self.key(keys)), self._split(self.value(keys))
        context = attend(q, k, v, self.attention_dropout, visible=visible, causal=causal)
        return context.transpose(1, 2).flatten(2)  # (B, L, D)

    def _finish(self, queries: Tensor, context: Tensor) -> Tensor:
        finished: Tensor = self.norm(queries + self.dropout(self.output(context)))
        return finished

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, L, D / H)


class FeedForward(nn.Module):
    """Linear, GELU, linear, dropout, residual and LayerNorm on (..., D)."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        finished: Tensor = self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))
        return finished


class CausalLayer(nn.Module):
    """One transformer layer over a history, each step seeing itself and the earlier ones."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, heads, dropout, attention_dropout)
        self.feed_forward = FeedForward(width, inner, dropout)

    def forward(self, states: Tensor) -> Tensor:
        """(B, L, D), padded on the right -> (B, L, D)."""
        finished: Tensor = self.feed_forward(self.attention.causal(states))
        return finished


class CrossLayer(nn.Module):
    """One transformer layer: queries from one history's states, keys and values from the other's."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, heads, dropout, attention_dropout)
        self.feed_forward = FeedForward(width, inner, dropout)

    def forward(self, states: Tensor, others: Tensor, others_mask: Tensor) -> Tensor:
        """(B, L, D), (B, K, D) and (B, K) bool -> (B, L, D); all real others are visible to every step."""
        finished: Tensor = self.feed_forward(self.attention(states, others, others_mask))
        return finished


def causal_stack(
    layers: int, width: int, heads: int, inner: int, dropout: float, attention_dropout: float
) -> nn.Sequential:
    """`layers` causal layers in a row: (B, L, D) -> (B, L, D)."""
    return nn.Sequential(
        *(CausalLayer(width, heads, inner, dropout, attention_dropout) for _ in range(layers))
    )


def initialise(module: nn.Module, std: float = INITIAL_STD) -> None:
    """The usual transformer start, in place, for the module itself (use with `Module.apply`).

    Linear and embedding weights are drawn from N(0, std^2), biases and an embedding's padding row are zero,
    a LayerNorm is the identity.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=std)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
