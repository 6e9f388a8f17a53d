"""`tiny-random`: a Llama-shaped LLM of random weights and a byte tokenizer, for runs in seconds."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20240313
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
_POSITIONS = 8192


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One id a byte (260 with the special ones), so any text in any language has ids and can be read back."""
    symbols = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=_POSITIONS,
    )


def tiny_config() -> LlamaConfig:
    """Width 32, 2 layers, 4 heads over 2 key-value heads, tied embeddings."""
    return LlamaConfig(
        vocab_size=len(SPECIAL_TOKENS) + 256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_POSITIONS,
        # Larger than usual: at 0.02 a model this narrow hardly mixes its positions.
        initializer_range=0.1,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def tiny_weights() -> dict[str, torch.Tensor]:
    """The fp32 weights, the same on every call; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return LlamaForCausalLM(tiny_config()).state_dict()
