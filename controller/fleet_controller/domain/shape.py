"""What of a model's architecture decides how much memory a context takes."""

import math

from fleet_controller.domain.base import Frozen

F16_BYTES = 2
F32_BYTES = 4


class ModelShape(Frozen):
    """The part of an architecture that memory depends on.

    A model has `kv_layers` layers whose cache grows with the context, `window_layers` whose cache stops at
    `window_tokens`, and `recurrent_layers` (linear attention, SSM) with a state of fixed size per sequence.
    With multi-head latent attention (MLA) a layer keeps `mla_latent_length` values a token instead of keys and values;
    `mla_head_length` is what a head has once they are unpacked. `recurrent_values_per_layer` is the state proper,
    `convolution_values_per_layer` the short convolution's that goes with it, `recurrent_width` what it gives a token.
    `gated_queries`: a gate is computed beside the queries, of the same size. Widths are what a layer's intermediate
    results come from; 0 = not known.
    """

    architecture: str = ""
    layers: int = 0
    kv_layers: int = 0
    kv_heads: int = 0
    key_length: int = 0
    value_length: int = 0
    mla_latent_length: int = 0
    window_layers: int = 0
    window_tokens: int = 0
    recurrent_layers: int = 0
    recurrent_values_per_layer: int = 0
    context_length: int | None = None
    query_heads: int = 0
    convolution_values_per_layer: int = 0
    convolution_channels: int = 0
    recurrent_width: int = 0
    mla_head_length: int = 0
    gated_queries: bool = False
    width: int = 0
    feed_forward: int = 0
    vocabulary: int = 0
    experts: int = 0
    experts_used: int = 0
    expert_feed_forward: int = 0

    def tensor_parallel_size(self, devices: int) -> int:
        """On how many of so many GPUs a tensor-parallel server can run: heads are dealt out whole.

        Key and value heads may also be fewer than GPUs, as long as each is copied to equally many.
        """

        def dealt(count: int) -> bool:
            kv_heads = 1 if self.mla_latent_length else self.kv_heads
            return self.query_heads % count == 0 and (kv_heads % count == 0 or count % max(kv_heads, 1) == 0)

        return next((count for count in range(devices, 1, -1) if dealt(count)), min(devices, 1))

    def cache_copies(self, devices: int) -> int:
        """How often tensor parallelism keeps the KV cache: a latent vector (MLA) or a single head cannot be split."""
        if self.mla_latent_length:
            return max(devices, 1)
        return max(devices // self.kv_heads, 1) if self.kv_heads else 1

    def _values_per_layer(self) -> int:
        return self.mla_latent_length or self.kv_heads * (self.key_length + self.value_length)

    def kv_bytes_per_token(self, bytes_per_value: float = F16_BYTES) -> int:
        """Bytes that one more token of context takes. Source: llama.cpp's KV cache layout, k and v per layer."""
        return math.ceil(self.kv_layers * self._values_per_layer() * bytes_per_value)

    def window_bytes(self, context_tokens: int, bytes_per_value: float = F16_BYTES) -> int:
        """Bytes of the layers with a sliding window, which never hold more than the window."""
        values = self.window_layers * self._values_per_layer() * min(context_tokens, self.window_tokens)
        return math.ceil(values * bytes_per_value)

    def window_bytes_of(self, cells: int, bytes_per_value: float = F16_BYTES) -> int:
        """Bytes of the layers with a sliding window for a cache of so many cells."""
        return math.ceil(self.window_layers * self._values_per_layer() * cells * bytes_per_value)

    def recurrent_bytes_per_sequence(self) -> int:
        """f32 bytes of recurrent state that one sequence (slot) holds, whatever its length."""
        values = self.recurrent_values_per_layer + self.convolution_values_per_layer
        return self.recurrent_layers * values * F32_BYTES

    def kv_arithmetic(self, bytes_per_value: float = F16_BYTES) -> str:
        """How kv_bytes_per_token comes about: "16 layers x 4 heads x (256 + 256) x 2 B"."""
        size = f"{bytes_per_value:g} B"
        if self.mla_latent_length:
            return f"{self.kv_layers} layers x {self.mla_latent_length} (MLA) x {size}"
        lengths = f"({self.key_length} + {self.value_length})"
        return f"{self.kv_layers} layers x {self.kv_heads} heads x {lengths} x {size}"
