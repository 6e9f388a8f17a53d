"""A training step of stage one, against the schedule of the reference implementation.

    python scripts/bench/align.py [--json] [--quick] [--work build/bench] [--layers 0] [--steps 5]
        [--worlds demo large]

All schedules compute the same losses and gradients of the same model (checked here in float32 with dropout off) on the
simulator's `demo` and `large` worlds, 2 users with histories 10 + 10. The reference's: vocabulary logits of every
position of the prompt, and five text passes (titles and comments of both histories, targets), each padded to its
longest text, every occurrence of a text anew. Ours: each distinct text once, sorted by length in batches of a token
budget, and logits of response tokens alone. The reference computes every layer again in its backward pass; ours does
that (`full`), computes norms, activations and gates again (`selective`) or keeps everything (`kept`,
--gradient_checkpointing False). Steps (forward and backward) are taken in turns; memory is that of a process each.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from common import arguments, middle, prepared, report, run_child, tell
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.nn import functional as F

from lsvcr.data.align import AlignBatch
from lsvcr.data.store import open_dataset
from lsvcr.llm.aligned import AlignedModel, draw_positions
from lsvcr.llm.contrast import Vectors
from lsvcr.llm.encoder import mean_pool, padded
from lsvcr.llm.families import backbone, output_head, unwrap
from lsvcr.llm.lora_linear import LoraLinear
from lsvcr.llm.recompute import enable_checkpointing
from lsvcr.models.sr import Positions
from lsvcr.settings import AlignSettings
from lsvcr.training.align_build import AlignParts, build
from lsvcr.utils.logging import quiet_third_party

USERS = 2
HISTORY = 10
WAYS = ("full", "selective", "kept")

MEMORY = """
import sys
sys.path.insert(0, sys.argv[1])
import align
from common import own_peak_gb
align.one_schedule(sys.argv[2], sys.argv[3], int(sys.argv[4]))
print(own_peak_gb())
"""


class ReferenceSchedule(AlignedModel):
    """The same model, computed as the reference implementation does."""

    def vectors(self, batch: AlignBatch, positions: Positions | None) -> Vectors:
        """See `AlignedModel.vectors`; every occurrence of a text is a text of its own."""
        expanded, self._passes = every_occurrence(batch)
        return super().vectors(expanded, positions)

    def pooled(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """One padded pass for each group of occurrences."""
        rows = [torch.zeros(1, backbone(self.llm).config.hidden_size)]
        start = 1
        for size in self._passes:
            part = texts[start : start + size]
            start += size
            tokens, mask = padded([text or [self._pad_id] for text in part], self._pad_id)
            states = backbone(self.llm)(input_ids=tokens, attention_mask=mask.long(), use_cache=False)
            empty = torch.tensor([not text for text in part])
            rows.append(mean_pool(states.last_hidden_state, mask).masked_fill(empty[:, None], 0.0))
        return torch.cat(rows)

    def _read_prompts(self, batch: AlignBatch) -> tuple[Tensor, Tensor]:
        """Padded on the left, logits of all positions, as a causal LM's own forward pass gives them."""
        lengths = torch.tensor([*map(len, batch.sequences)])
        width, said = int(lengths.max()), torch.tensor(batch.response_lengths)
        mask = torch.arange(width) >= width - lengths[:, None]
        ids = torch.full(mask.shape, self._pad_id)
        ids[mask] = torch.tensor([token for sequence in batch.sequences for token in sequence])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        states = backbone(self.llm)(
            input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=False
        ).last_hidden_state
        logits = output_head(self.llm)(states).float()
        # A row ends at `width`: a response of n tokens is predicted by the states width - n - 1 ... width - 2.
        labels = ids.roll(-1, 1).masked_fill(torch.arange(width) < width - said[:, None] - 1, -100)
        labels[:, -1] = -100
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(ids.shape)
        return states[torch.arange(len(batch)), width - said - 1].float(), losses.sum(1) / said


def every_occurrence(batch: AlignBatch) -> tuple[AlignBatch, list[int]]:
    """The batch with each occurrence of a text listed, and how many occurrences each of the five passes has."""
    fields = ["video_title", "video_comment", "comment_title", "comment_texts", "target", "watched"]
    texts: list[list[int]] = [[]]
    changed, sizes = {}, []
    for name in fields:
        index = getattr(batch, name)
        entries = index.flatten().tolist()
        real = [entry for entry in entries if entry]
        numbers = iter(range(len(texts), len(texts) + len(real)))
        changed[name] = torch.tensor([next(numbers) if entry else 0 for entry in entries]).view(index.shape)
        texts += [batch.texts[entry] for entry in real]
        sizes.append(len(real))
    sizes = [*sizes[:4], sizes[4] + sizes[5]]
    return dataclasses.replace(batch, texts=texts, **changed), [size for size in sizes if size]


class Meter:
    """Counts what goes through the LLM: tokens with padding, real ones, and rows of vocabulary logits."""

    def __init__(self, model: AlignedModel) -> None:
        self.tokens = self.logits = 0
        backbone(model.llm).register_forward_pre_hook(self._body, with_kwargs=True)
        output_head(model.llm).register_forward_pre_hook(self._head)

    def _body(self, _module: nn.Module, _args: tuple, inputs: dict) -> None:
        self.tokens += inputs["input_ids"].numel()

    def _head(self, _module: nn.Module, args: tuple) -> None:
        self.logits += args[0].shape[:-1].numel()

    def take(self) -> tuple[int, int]:
        """(tokens, logit rows) since the last call."""
        counted = self.tokens, self.logits
        self.tokens = self.logits = 0
        return counted


def settings_for(data: str, layers: int, bf16: bool | None) -> AlignSettings:
    """Nothing random but the order, so that both schedules meet the same arithmetic."""
    return AlignSettings(
        data_path=data,
        llm_layers=layers,
        bf16=bf16,
        max_phis_len=HISTORY,
        max_chis_len=HISTORY,
        lora_dropout=0.0,
        dropout=0.0,
        attention_dropout=0.0,
        eval_pool=1,
    )


def long_batches(parts: AlignParts, count: int) -> list[AlignBatch]:
    """Batches of the first `USERS` samples whose histories are both full, then the next ones, and so on."""
    chosen, batches = [], []
    for position in range(len(parts.stream)):
        sample = parts.stream[position]
        if len(sample.videos) == HISTORY and len(sample.comments) >= HISTORY // 2:
            chosen.append(sample)
        if len(chosen) == USERS:
            batches.append(parts.collator(chosen))
            chosen = []
        if len(batches) == count:
            return batches
    raise SystemExit(f"{count} batches of full histories were asked for, there are {len(batches)}")


def schedules(parts: AlignParts) -> dict[str, AlignedModel]:
    """The reference's and every way of ours, over one and the same LLM and heads."""
    own = parts.model
    reference = ReferenceSchedule(
        own.llm, own.heads, pad_id=own._pad_id, text_token_budget=own._budget, weights=own._weights
    )
    return {"reference": reference.train(), **{f"ours_{way}": own.train() for way in WAYS}}


def choose(name: str, model: AlignedModel) -> AlignedModel:
    """The model, set to compute as the schedule of this name does; the reference computes whole layers again, and LoRA
    as peft does."""
    way = name.removeprefix("ours_")
    for layer in model.llm.modules():
        if isinstance(layer, PeftLinear):
            layer.__class__ = PeftLinear if name == "reference" else LoraLinear
    if way == "kept":
        unwrap(model.llm).gradient_checkpointing_disable()
    else:
        enable_checkpointing(model.llm, "selective" if way == "selective" else "full")
    return model


def step(model: AlignedModel, batch: AlignBatch) -> tuple[float, float]:
    """Forward and backward; (seconds, loss)."""
    model.zero_grad(set_to_none=True)
    positions = draw_positions(batch, (HISTORY, HISTORY), 50, 0, 0)
    start = time.perf_counter()
    loss = model(batch, positions)["loss"]
    loss.backward()
    return time.perf_counter() - start, float(loss.detach())


def difference(models: dict[str, AlignedModel], batch: AlignBatch) -> tuple[float, float, float]:
    """How far ours are from the reference, the worst of our ways, relative: losses, the gradient of all parameters
    as one vector, and single numbers of it (over the largest of their parameter)."""
    losses, gradients = {}, {}
    for name, model in models.items():
        _, losses[name] = step(choose(name, model), batch)
        gradients[name] = {
            key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None
        }
    largest = max(float(grad.abs().max()) for grad in gradients["reference"].values())
    ours = [name for name in models if name != "reference"]
    worst = max(
        float((gradients[name][key] - grad).abs().max() / grad.abs().max().clamp(min=1e-3 * largest))
        for name in ours
        for key, grad in gradients["reference"].items()
    )
    apart = max(abs(losses[name] - losses["reference"]) for name in ours) / abs(losses["reference"])
    lengths = {
        name: size({k: gradients[name][k] - g for k, g in gradients["reference"].items()}) for name in ours
    }
    return apart, max(lengths.values()) / size(gradients["reference"]), worst


def size(gradients: dict[str, Tensor]) -> float:
    """Norm of all of them as one vector."""
    return float(
        torch.stack([gradient.double().square().sum() for gradient in gradients.values()]).sum().sqrt()
    )


def world_figures(preset: str, data: Path, layers: int, steps: int) -> dict[str, float]:
    """Everything of one world."""
    parts = build(settings_for(str(data), layers, None), open_dataset(data))
    models, batches = schedules(parts), long_batches(parts, steps)
    meter = Meter(parts.model)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    used: dict[str, tuple[int, int]] = {}
    for number, batch in enumerate([batches[0], *batches]):
        for name, model in models.items():
            taken, _ = step(choose(name, model), batch)
            used[name] = meter.take()
            if number:  # the first one warms up
                seconds[name].append(taken)
        told = ", ".join(f"{name} {taken[-1]:.1f} s" for name, taken in seconds.items() if taken)
        tell(f"{preset}: step {number} of {len(batches)} {told}")
    batch = batches[-1]
    expanded, _ = every_occurrence(batch)
    prompt, distinct = sum(map(len, batch.sequences)), sum(map(len, batch.texts))
    occurring = sum(map(len, expanded.texts))
    tokens = {name: read for name, (read, _) in used.items()}
    body = sum(p.numel() for name, p in backbone(parts.model.llm).named_parameters() if "embed" not in name)
    head = output_head(parts.model.llm).weight.numel()

    def flops(read: float, rows: float) -> float:
        return 2 * (body * read + head * rows)

    needed = flops(prompt + distinct, sum(batch.response_lengths))
    took = {name: middle(values) for name, values in seconds.items()}
    ours = "ours_selective"
    return {
        **{f"{preset}_{name}_step_s": value for name, value in took.items()},
        **{f"{preset}_ours_{way}_speedup": ratio(seconds, f"ours_{way}") for way in WAYS},
        f"{preset}_{ours}_tokens_per_s": (prompt + distinct) / took[ours],
        f"{preset}_reference_padding_share": 1 - (prompt + occurring) / tokens["reference"],
        f"{preset}_ours_padding_share": 1 - (prompt + distinct) / tokens[ours],
        f"{preset}_duplicate_share": 1 - distinct / occurring,
        f"{preset}_prompt_share_of_tokens": prompt / (prompt + distinct),
        f"{preset}_reference_flops_over_needed": flops(tokens["reference"], used["reference"][1]) / needed,
        f"{preset}_ours_flops_over_needed": flops(tokens[ours], used[ours][1]) / needed,
    }


def ratio(seconds: dict[str, list[float]], name: str) -> float:
    """Median over the batches, which differ in length, of the reference's time over that of schedule `name`."""
    return middle([whole / own for whole, own in zip(seconds["reference"], seconds[name], strict=True)])


def one_schedule(name: str, data: str, layers: int) -> None:
    """Two steps of one schedule, for a process whose memory is measured."""
    quiet_third_party()
    parts = build(settings_for(data, layers, None), open_dataset(data))
    model = choose(name, schedules(parts)[name])
    for batch in long_batches(parts, 2):
        step(model, batch)


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__, "the demo world alone, 4 layers, one step")
    parser.add_argument("--layers", type=int, default=0, help="first N layers of the LLM; 0 = all")
    parser.add_argument("--steps", type=int, default=5, help="steps of each schedule and world")
    parser.add_argument("--worlds", nargs="+", default=["demo", "large"], help="presets of the simulator")
    options = parser.parse_args()
    if options.quick:
        options.layers, options.steps, options.worlds = 4, 1, ["demo"]
    quiet_third_party()
    figures: dict[str, float] = {}
    for preset in options.worlds:
        data = prepared(preset, options.work)
        exact = build(settings_for(str(data), options.layers, False), open_dataset(data))
        loss, gradient, single = difference(schedules(exact), long_batches(exact, 1)[0])
        figures |= {f"{preset}_loss_diff": loss, f"{preset}_grad_diff": gradient}
        figures[f"{preset}_max_grad_number_diff"] = single
        del exact
        figures |= world_figures(preset, data, options.layers, options.steps)
        for name in ("reference", *(f"ours_{way}" for way in WAYS)):
            here = str(Path(__file__).parent)
            child = run_child(["-c", MEMORY, here, name, str(data), str(options.layers)])
            figures[f"{preset}_{name}_rss_gb"] = float(child.stdout.split()[-1])
    report("align", figures | overall(figures, options.worlds), options.json)


def overall(figures: dict[str, float], worlds: Sequence[str]) -> dict[str, float]:
    """The worst of all worlds; the speed-up is our fastest way's that needs no more memory than the reference."""

    def speedup(world: str) -> float:
        most = figures[f"{world}_reference_rss_gb"]
        fitting = [way for way in WAYS if figures[f"{world}_ours_{way}_rss_gb"] <= most]
        return max((figures[f"{world}_ours_{way}_speedup"] for way in fitting), default=0.0)

    return {
        "speedup_vs_reference": min(map(speedup, worlds)),
        "max_grad_diff": max(figures[f"{world}_grad_diff"] for world in worlds),
        "duplicate_share": min(figures[f"{world}_duplicate_share"] for world in worlds),
        "padding_share": max(figures[f"{world}_ours_padding_share"] for world in worlds),
    }


if __name__ == "__main__":
    main()
