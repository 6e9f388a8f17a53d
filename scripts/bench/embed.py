"""Texts to vectors: sorted batches of a token budget, against one text at a time and against random batches of 32.

    python scripts/bench/embed.py [--json] [--quick] [--work build/bench] [--layers 0] [--texts 512]

The reference implementation embeds one text at a time. The three take turns on the same texts, titles and comments of
the simulator's `demo` world drawn with a fixed seed, and their vectors are compared.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from common import arguments, middle, prepared, report, tell
from torch import Tensor, nn

from lsvcr.data.store import open_dataset
from lsvcr.llm.encoder import encode_inference, tokenize
from lsvcr.llm.families import backbone
from lsvcr.llm.loading import load_llm
from lsvcr.utils.logging import quiet_third_party
from lsvcr.utils.precision import compute_dtype
from lsvcr.utils.seeding import generator

BUDGET = 1024
"""Tokens of a batch, the default of `lsvcr embed` on a CPU."""

Ids = Sequence[Sequence[int]]


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__, "64 texts, 4 layers, one turn")
    parser.add_argument("--layers", type=int, default=0, help="first N layers of the LLM; 0 = all")
    parser.add_argument("--texts", type=int, default=512, help="texts a turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns; medians are reported")
    options = parser.parse_args()
    if options.quick:
        options.layers, options.texts, options.repeats = 4, 64, 1
    quiet_third_party()
    model, tokenizer = load_llm("smollm2-135m", dtype=compute_dtype(None), llm_layers=options.layers)
    ids = tokenize(tokenizer, drawn_texts(options.work, options.texts), 64)
    report("embed", figures(backbone(model), ids, int(tokenizer.pad_token_id), options.repeats), options.json)


def drawn_texts(work: Path, count: int) -> list[str]:
    """Titles and comments of the demo world in random order."""
    dataset = open_dataset(prepared("demo", work))
    every = [*list(dataset.titles())[1:], *list(dataset.contents())[1:]]
    return [every[place] for place in generator(0).permutation(len(every))[:count]]


def figures(llm: nn.Module, ids: Ids, pad_id: int, repeats: int) -> dict[str, float]:
    """Texts and tokens a second of each way, and ratios."""

    def cut(size: int) -> Tensor:
        parts = [ids[start : start + size] for start in range(0, len(ids), size)]
        return torch.cat([encode_inference(llm, part, pad_id=pad_id, budget=1 << 30) for part in parts])

    ways: dict[str, Callable[[], Tensor]] = {
        "one_at_a_time": lambda: cut(1),
        "random_batches_of_32": lambda: cut(32),
        "ours": lambda: encode_inference(llm, ids, pad_id=pad_id, budget=BUDGET),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    vectors = {}
    encode_inference(llm, ids[:8], pad_id=pad_id, budget=BUDGET)  # warms up
    for turn in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            vectors[name] = way()
            seconds[name].append(time.perf_counter() - start)
        tell(f"turn {turn + 1} of {repeats}: " + ", ".join(f"{n} {s[-1]:.1f} s" for n, s in seconds.items()))
    taken = {name: middle(values) for name, values in seconds.items()}
    tokens = sum(map(len, ids))
    largest = max(float((vectors[name] - vectors["ours"]).abs().max()) for name in ways)
    return {
        "speedup_vs_naive": taken["one_at_a_time"] / taken["ours"],
        "speedup_vs_random_batches_of_32": taken["random_batches_of_32"] / taken["ours"],
        **{f"{name}_texts_per_s": len(ids) / value for name, value in taken.items()},
        **{f"{name}_tokens_per_s": tokens / value for name, value in taken.items()},
        "largest_difference_over_largest_value": largest / float(vectors["ours"].abs().max()),
    }


if __name__ == "__main__":
    main()
