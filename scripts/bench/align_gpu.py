"""Training steps of stage one on a GPU: how much of what the GPU can do is used.

    python scripts/bench/align_gpu.py [--json] [--quick] [--users 4] [--steps 5] [--peak_tflops 0]

Models of random weights with the shapes of Qwen2.5-0.5B and ChatGLM3-6B, LoRA on every projection, bfloat16, forward
and backward of `--users` samples: a prompt of 2,000 tokens with a response of 16 and 80 texts of 16 tokens each. Every
way of recomputation in turn. Model FLOPs utilisation counts what must be computed, 4 operations a weight and token
(the frozen weights need no gradient of their own) and attention, once, recomputation not; the peak is
`--peak_tflops`, or what a large bfloat16 matrix product reaches here. `--quick` is a tiny shape, on the CPU where
there is no GPU.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from common import arguments, middle, report, tell
from transformers import AutoModelForCausalLM, GlmConfig, PretrainedConfig, Qwen2Config

from lsvcr.data.align import AlignBatch
from lsvcr.llm.aligned import AlignedHeads, AlignedModel
from lsvcr.llm.families import backbone
from lsvcr.llm.lora import add_lora
from lsvcr.llm.recompute import enable_checkpointing
from lsvcr.models.sr import SRModel
from lsvcr.utils.logging import quiet_third_party
from lsvcr.utils.seeding import generator

WAYS = ("none", "selective", "full")
HISTORY, TEXT, RESPONSE = 20, 16, 16

SHAPES: dict[str, PretrainedConfig] = {
    "qwen2.5_0.5b": Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4_864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "chatglm3_6b": GlmConfig(
        vocab_size=65_024, hidden_size=4_096, intermediate_size=13_696, num_hidden_layers=28,
        num_attention_heads=32, num_key_value_heads=2, head_dim=128, pad_token_id=0,
    ),
}  # fmt: skip
TINY = Qwen2Config(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip


@dataclass(frozen=True)
class Load:
    """What a step reads."""

    users: int
    prompt: int

    @property
    def tokens(self) -> int:
        """All tokens that go through the LLM."""
        return self.users * (self.prompt + RESPONSE + 4 * HISTORY * TEXT)


def batch_of(load: Load, vocabulary: int, device: torch.device) -> AlignBatch:
    """Random ids; every entry of a history shows a title and a comment of its own."""
    rng, users = generator(0), load.users
    texts = [[], *rng.integers(3, vocabulary, (users * 4 * HISTORY, TEXT)).tolist()]
    number = torch.arange(1, len(texts)).view(4, users, HISTORY)
    entries = torch.arange(users * HISTORY)
    keys = torch.arange(users)
    made = AlignBatch(
        rows=keys,
        is_rec=keys % 2 == 0,
        sequences=rng.integers(3, vocabulary, (users, load.prompt + RESPONSE)).tolist(),
        response_lengths=[RESPONSE] * users,
        texts=texts,
        video_ids=torch.ones(users, HISTORY, dtype=torch.int64),
        video_title=number[0],
        video_comment=number[1],
        comment_video_ids=torch.ones(users, HISTORY, dtype=torch.int64),
        comment_title=number[2],
        comment_texts=number[3].flatten(),
        comment_segments=entries,
        target=number[0, :, 0],
        watched=number[2, :, 0],
        target_keys=keys,
        positive_keys=keys[:, None],
    )
    return made.to(device)


def model_of(config: PretrainedConfig, way: str, device: torch.device) -> AlignedModel:
    """Stage one's model around random weights."""
    torch.manual_seed(0)
    with device:
        llm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    llm = add_lora(llm, 8, 32, 0.1)
    if way != "none":
        enable_checkpointing(llm, "full" if way == "full" else "selective")
    heads = AlignedHeads(SRModel(text_width=256, max_position=50), config.hidden_size, 256)
    weights = {"lm": 1.0, "rec": 1.0, "contrast": 0.5}
    made = AlignedModel(llm, heads, pad_id=0, text_token_budget=16_384, weights=weights)
    return made.to(device, torch.bfloat16).train()


def needed(model: AlignedModel, load: Load) -> float:
    """Operations of a step, each counted once: forward, and the gradient of what flows through frozen weights."""
    config: Any = backbone(model.llm).config
    body = sum(p.numel() for name, p in backbone(model.llm).named_parameters() if "embed" not in name)
    head = config.vocab_size * config.hidden_size * RESPONSE * load.users
    long, short = load.prompt + RESPONSE, 4 * HISTORY
    pairs = load.users * (long**2 + short * TEXT**2) / 2  # causal
    width = config.num_attention_heads * getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    attention = config.num_hidden_layers * 2 * pairs * width
    # Backward: one product a weight for the gradient that flows on, and five for attention's two.
    return 2 * (body * load.tokens + head) * 2 + 2 * attention * 3.5


def matmul_tflops(device: torch.device) -> float:
    """What a large bfloat16 product reaches here."""
    size = 8192 if device.type == "cuda" else 512
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    taken = []
    for _ in range(10):
        start = clock(device)
        left @ left
        taken.append(clock(device) - start)
    return 2 * size**3 / middle(taken) / 1e12


def clock(device: torch.device) -> float:
    """Seconds, after all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def way_figures(
    name: str, config: PretrainedConfig, way: str, load: Load, steps: int, device: torch.device, peak: float
) -> dict[str, float]:
    """One shape and way of recomputation."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model, batch = model_of(config, way, device), batch_of(load, config.vocab_size, device)
    taken = []
    for number in range(steps + 2):
        model.zero_grad(set_to_none=True)
        start = clock(device)
        model(batch, None)["loss"].backward()
        if number >= 2:  # two warm up
            taken.append(clock(device) - start)
    seconds = middle(taken)
    tell(f"{name}, {way}: {seconds:.3f} s a step; attention {config._attn_implementation}")
    figures = {
        f"{name}_{way}_tokens_per_s": load.tokens / seconds,
        f"{name}_{way}_mfu": needed(model, load) / seconds / 1e12 / peak,
    }
    if device.type == "cuda":
        figures[f"{name}_{way}_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return figures


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__, "a tiny shape, one step")
    parser.add_argument("--users", type=int, default=4, help="samples of a step")
    parser.add_argument("--steps", type=int, default=5, help="measured steps; medians are reported")
    parser.add_argument(
        "--peak_tflops", type=float, default=0.0, help="of the GPU; 0 = measured by a product"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.quick:
        raise SystemExit("no GPU here: nothing was measured (--quick tries the code on the CPU)")
    quiet_third_party()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes, load, steps = SHAPES, Load(options.users, 2000), options.steps
    if options.quick:
        shapes, load, steps = {"tiny": TINY}, Load(2, 60), 1
    peak = options.peak_tflops or matmul_tflops(device)
    figures = {"peak_tflops": peak}
    for name, config in shapes.items():
        for way in WAYS:
            figures |= way_figures(name, config, way, load, steps, device, peak)
    report("align_gpu", figures, options.json)


if __name__ == "__main__":
    main()
