"""A random model of the llama architecture, small enough to be written, cut and run in milliseconds."""

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quantize

LAYERS, WIDTH, NEURONS, HEADS, GROUPS, HEAD_SIZE, WORDS = 3, 96, 160, 6, 3, 16, 40


def tiny_model(
    path,
    kind="F32",
    *,
    architecture="llama",
    head_size=HEAD_SIZE,
    neurons=NEURONS,
    own_output=False,
    more=None,
    without=None,
):
    """Write it, its matrices in a quantisation, with one vector `more` or `without` a tensor; it has no tokenizer."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, architecture)
    writer.add_string("tokenizer.ggml.model", "none")
    writer.add_vocab_size(WORDS)
    writer.add_context_length(128)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(neurons)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(1e4)
    if head_size * HEADS != WIDTH:
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)

    def add(name, *shape):
        if f"{name}.weight" == without:
            return
        values = (rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", 1 + values)
        else:
            stored = GGMLQuantizationType[kind]
            writer.add_tensor(f"{name}.weight", quantize(values, stored), raw_dtype=stored)

    add("token_embd", WORDS, WIDTH)
    add("output_norm", WIDTH)
    if own_output:
        add("output", WORDS, WIDTH)
    for layer in range(LAYERS):
        add(f"blk.{layer}.attn_norm", WIDTH)
        add(f"blk.{layer}.attn_q", HEADS * head_size, WIDTH)
        add(f"blk.{layer}.attn_k", GROUPS * head_size, WIDTH)
        add(f"blk.{layer}.attn_v", GROUPS * head_size, WIDTH)
        add(f"blk.{layer}.attn_output", WIDTH, HEADS * head_size)
        add(f"blk.{layer}.ffn_norm", WIDTH)
        add(f"blk.{layer}.ffn_gate", neurons, WIDTH)
        add(f"blk.{layer}.ffn_up", neurons, WIDTH)
        add(f"blk.{layer}.ffn_down", WIDTH, neurons)
    if more:
        writer.add_tensor(more, np.zeros(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
