"""What differs between causal language models, in one place: names of linear layers and ways in.

Nothing here names a class: a family that transformers adds tomorrow works if it keeps the library's
conventions (`base_model`, `get_output_embeddings`, one entry a layer in the lists of its configuration).
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lsvcr.utils.errors import UserError

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")
"""Every linear projection of attention and MLP in Qwen2/2.5/3, Llama-like and GLM models; absent names are
ignored. The output head is never among them: a LoRA there would train the vocabulary."""

ALL_LINEAR = "all-linear"
"""peft's word for every linear layer but the output head; for families with other names, such as GPT-2."""


_FINGERPRINT_ROWS = 256


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The causal LM itself, out of a `PeftModel` if it is in one; its adapters stay active."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def backbone(model: nn.Module) -> nn.Module:
    """The decoder without output head, adapters active.

    Its `last_hidden_state` (B, T, h) is taken after the final norm, which is what LSVCR pools.
    """
    return unwrap(model).base_model


def output_head(model: nn.Module) -> nn.Module:
    """The layer from hidden states (..., h) to vocabulary logits.

    Raises:
        UserError: the model has none.
    """
    head = unwrap(model).get_output_embeddings()
    if head is None:
        raise UserError("this LLM has no output head, so it is not a causal language model: choose another")
    return head


def drop_vocabulary(model: PreTrainedModel, *, reads: bool) -> None:
    """Take the output head out of a causal LM whose states alone are wanted, and with it, unless it `reads` tokens, the
    embeddings, for one that is given vectors: neither would ever have a gradient."""
    model.set_output_embeddings(nn.Identity())
    if not reads:
        model.set_input_embeddings(nn.Identity())


def hidden_size(model: nn.Module) -> int:
    """Width h of the hidden states."""
    return int(unwrap(model).config.get_text_config().hidden_size)


def n_layers(config: PretrainedConfig) -> int:
    """Number of decoder layers a configuration asks for."""
    return int(config.get_text_config().num_hidden_layers)


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """SHA-256 of embeddings from all over the vocabulary: which base model this is, whatever its folder is called.

    The same for every precision the weights may be kept in, with and without LoRA, and for any number of layers.
    """
    embedding = unwrap(model).get_input_embeddings()
    rows = getattr(embedding.weight, "ds_shape", embedding.weight.shape)[0]
    ids = torch.linspace(0, rows - 1, _FINGERPRINT_ROWS, device=next(embedding.parameters()).device).long()
    vectors = embedding(ids).bfloat16().float().cpu()
    return hashlib.sha256(vectors.numpy().tobytes()).hexdigest()


def lora_targets(model: nn.Module) -> list[str] | str:
    """What LoRA is put on: the known projections, or every linear layer of a family with other names."""
    last_names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    found = [name for name in LORA_TARGETS if name in last_names]
    return found or ALL_LINEAR


def truncate(config: PretrainedConfig, layers: int) -> None:
    """Make `config` (in place) describe the model's first `layers` decoder layers; 0 keeps all.

    Lists that hold one entry a layer (kinds of attention, for instance) are shortened too.

    Raises:
        UserError: `layers` is negative or more than the model has.
    """
    text = config.get_text_config()
    total = n_layers(config)
    if layers < 0 or layers > total:
        raise UserError(
            f"--llm_layers {layers}: this LLM has {total} layers; give 1 to {total}, or 0 for all"
        )
    if layers in (0, total):
        return
    per_layer = {
        key: value for key, value in text.to_dict().items() if _is_list(value) and len(value) == total
    }
    text.num_hidden_layers = layers
    for key, value in per_layer.items():
        setattr(text, key, list(value)[:layers])


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
    """Pad on the left with an existing token and tell the model. Of pad and end token one serves for both where the
    other is missing; labels are told by their place, so that an end token that also pads is learned.

    The vocabulary is never resized: a new row would be random, and adapters would not fit other copies.

    Raises:
        UserError: no token can serve as padding, or the tokenizer has more ids than the model has rows.
    """
    embedding = model.get_input_embeddings().weight
    # Of a weight that DeepSpeed has cut among the processes, the whole one's shape.
    rows = getattr(embedding, "ds_shape", embedding.shape)[0]
    if _usable_ids(tokenizer) > rows:
        raise UserError(
            f"{name}: the tokenizer has {len(tokenizer)} ids but the model's embedding only {rows} rows; "
            "they are not from the same model: take both from one place"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        if tokenizer.eos_token is None:
            raise UserError(
                f"{name}: the tokenizer has neither a pad nor an eos token; "
                "name one as eos_token in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.pad_token
    tokenizer.padding_side = "left"
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def _usable_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id that a text can get.

    Special tokens do not count, except those that end or fill a sequence: reading a GGUF file can add ones
    that the model never had, and a text typed by somebody never gets them.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    ids = [index for token, index in tokenizer.get_vocab().items() if token not in special]
    ends = [index for index in (tokenizer.bos_token_id, tokenizer.eos_token_id) if index is not None]
    return max([*ids, *ends], default=-1) + 1
