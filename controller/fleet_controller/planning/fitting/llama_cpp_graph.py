"""Compute buffers of llama.cpp: the intermediate results that its graph keeps at once for one micro batch.

llama.cpp reserves them once, for the largest batch at the full context (llama_context::sched_reserve), and packs them
with an allocator that reuses what is no longer needed (ggml-alloc.c). What counts is the moment at which most is
alive: in attention, in the feed-forward part, or at the logits. Columns are f32 values a token of the micro batch.

The terms follow the graphs of src/llama-graph.cpp and src/models/*.cpp of b11434; where the allocator leaves holes
they were settled on buffers that llama-server reported for forty shapes (docs/memory_fit.md has the comparison).
"""

from fleet_controller.backends.base import MemoryUse
from fleet_controller.domain.shape import F16_BYTES, F32_BYTES, ModelShape

# The input as tokens, as embeddings and as the mixture of both, the residual and its norm: alive through a layer.
_CARRIED = 5


def compute_bytes(shape: ModelShape, use: MemoryUse) -> int:
    """Bytes on one device; 0 where the shape's widths are not known."""
    if not shape.width or not use.micro_batch_tokens:
        return 0
    tokens = batch_tokens(use)
    attending = _attention(shape) * tokens * F32_BYTES + _scores_bytes(shape, use)
    columns = max(_linear_attention(shape, use), _feed_forward(shape), _experts(shape))
    return max(max(attending, columns * tokens * F32_BYTES) + mask_bytes(use), _logits_bytes(shape, use))


def input_bytes(shape: ModelShape, use: MemoryUse) -> int:
    """What the CPU hands over for each batch: embeddings, and the mask."""
    return 2 * shape.width * batch_tokens(use) * F32_BYTES + mask_bytes(use)


def batch_tokens(use: MemoryUse) -> int:
    return min(use.micro_batch_tokens, use.context_tokens)


def mask_bytes(use: MemoryUse) -> int:
    """One value for each token of the batch and each cell: f16 for flash attention, else f32."""
    streams = 1 if use.unified_cache else max(use.sequences, 1)
    cells = use.context_tokens // streams
    return cells * batch_tokens(use) * (F16_BYTES if use.flash_attention else F32_BYTES)


def _scores_bytes(shape: ModelShape, use: MemoryUse) -> int:
    """Without flash attention every head's scores of a layer are written out."""
    if use.flash_attention or not (shape.kv_layers or shape.window_layers):
        return 0
    streams = 1 if use.unified_cache else max(use.sequences, 1)
    return shape.query_heads * (use.context_tokens // streams) * batch_tokens(use) * F32_BYTES


def _logits_bytes(shape: ModelShape, use: MemoryUse) -> int:
    """Rows of logits that are asked for at once: of every token before outputs were limited, else one a slot."""
    rows = min(use.output_rows or batch_tokens(use), batch_tokens(use))
    carried = 3 * shape.width * batch_tokens(use) * F32_BYTES + mask_bytes(use)
    return rows * (shape.vocabulary + shape.width) * F32_BYTES + carried


def _attention(shape: ModelShape) -> int:
    if not (shape.kv_layers or shape.window_layers):
        return 0
    if shape.mla_latent_length:
        # Absorbed queries and what attention gives, both in the latent space, and the heads unpacked from it.
        return 3 * shape.width + shape.query_heads * (2 * shape.mla_latent_length + shape.mla_head_length + 64) + 1536
    queries = shape.query_heads * shape.key_length
    if shape.gated_queries:
        return 3 * shape.width + queries * 9 // 2
    return _CARRIED * shape.width + 2 * queries


def _linear_attention(shape: ModelShape, use: MemoryUse) -> int:
    """Gated delta net: the convolution's output with queries and keys made of it, gate and result; and the states of
    all sequences, which do not grow with the batch, before and after, with those that drafts may be taken back to.
    """
    if not shape.convolution_channels:
        return 0
    kept = 2.5 + (use.rollback_states + 2 if use.rollback_states else 0)
    states = int(kept * shape.recurrent_values_per_layer * use.sequences / batch_tokens(use))
    return (_CARRIED - 1) * shape.width + 2 * shape.convolution_channels + shape.recurrent_width + states


def _feed_forward(shape: ModelShape) -> int:
    """Gate, up, and their product."""
    return _CARRIED * shape.width + 3 * shape.feed_forward if shape.feed_forward else 0


def _experts(shape: ModelShape) -> int:
    """As above for each expert of a token; what they give lies behind where it does not fit into gate and up."""
    if not shape.experts_used:
        return 0
    inner, given = shape.experts_used * shape.expert_feed_forward, shape.experts_used * shape.width
    return _CARRIED * shape.width + 3 * inner + (given if given > 2 * inner else 0)
