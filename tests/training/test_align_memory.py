import dataclasses

import torch

from lsvcr.llm.loading import TINY, load_config, load_llm
from lsvcr.settings import AlignSettings
from lsvcr.training.align_memory import LIBRARIES, stage_one_memory


def test_memory_of_stage_one_is_counted_from_the_shapes():
    settings = AlignSettings(bf16=False, hidden=8, text_width=8, max_position=4)
    model, _ = load_llm(TINY, dtype=torch.float32)
    found = stage_one_memory(load_config(TINY), settings, 100)
    assert found["llm_parameters"] == sum(p.numel() for p in model.parameters())
    assert found["training_state_bytes"] == 16 * found["trained_parameters"]
    assert found["weights_bytes"] == 4 * (found["llm_parameters"] + found["trained_parameters"])
    assert found["process_bytes"] - LIBRARIES == sum(
        found[name] for name in ("weights_bytes", "training_state_bytes", "activation_bytes")
    )
    frozen = stage_one_memory(load_config(TINY), dataclasses.replace(settings, lora=False), 100)
    assert 0 < frozen["trained_parameters"] < found["trained_parameters"]
    longer = stage_one_memory(load_config(TINY), settings, 200)
    assert longer["activation_bytes"] > found["activation_bytes"]
    shared = stage_one_memory(load_config(TINY), settings, 100, processes=4)
    assert shared["training_state_bytes"] == 7 * found["trained_parameters"]


def test_what_is_not_computed_anew_takes_memory():
    settings = AlignSettings(bf16=False, hidden=8, text_width=8, max_position=4)
    ways = [{"recompute": "full"}, {"recompute": "selective"}, {"gradient_checkpointing": False}]
    sizes = [
        stage_one_memory(load_config(TINY), dataclasses.replace(settings, **way), 100)["activation_bytes"]
        for way in ways
    ]
    assert sizes == sorted(set(sizes))
