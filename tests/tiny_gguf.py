"""`tiny-random` in the format of llama.cpp, for the tests of GGUF loading."""

from pathlib import Path

import gguf
import numpy as np

from lsvcr.llm.tiny import tiny_tokenizer, tiny_weights


def write_tiny_gguf(path: Path) -> Path:
    """Write `tiny-random` as a GGUF file (with one more word, because GGUF wants a merge rule)."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(8192)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    words = sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])
    writer.add_vocab_size(len(words) + 1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*(word for word, _ in words), "zq"])
    writer.add_token_merges(["z q"])
    writer.add_token_types([3] * 4 + [1] * 257)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in _tensors().items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors() -> dict[str, np.ndarray]:
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    weights = {name: value.numpy() for name, value in tiny_weights().items()}
    embedding = weights["model.embed_tokens.weight"]
    tensors = {
        "token_embd.weight": np.concatenate([embedding, embedding[:1]]),
        "output_norm.weight": weights["model.norm.weight"],
    }
    for layer in range(2):
        for ours, theirs in names.items():
            value = weights[f"model.layers.{layer}.{ours}.weight"]
            heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(ours)
            if heads:  # GGUF interleaves the two halves of each head's rotary dimensions
                value = value.reshape(heads, 2, -1, 32).swapaxes(1, 2).reshape(value.shape)
            tensors[f"blk.{layer}.{theirs}.weight"] = value
    return tensors
