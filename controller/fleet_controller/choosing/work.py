"""What one cell asks of a machine: the sizes of a model, a device, an engine, and of the test. Pure data."""

from enum import StrEnum

from fleet_controller.domain.base import Frozen
from fleet_inventory.chips import ChipKind
from fleet_inventory.model_file import Architecture

LLAMA_CPP = "llama.cpp"
# LM Studio computes GGUF files with llama.cpp, so both are one class of engines.
ENGINE_OF = {"lm-studio": LLAMA_CPP}
# Their kernels use each generation's own matrix instructions; llama.cpp's are written for those since Turing.
NEWEST_INSTRUCTIONS = frozenset({"vllm", "sglang"})
# llama.cpp: n_ubatch 512. vLLM, SGLang and MLX-LM prefill in chunks of 2048 (max_num_batched_tokens,
# chunked_prefill_size and prefill_step_size as they come).
MICRO_BATCH_TOKENS = {LLAMA_CPP: 512}
OTHER_MICRO_BATCH_TOKENS = 2048


class Phase(StrEnum):
    DECODE = "tg"
    PREFILL = "pp"


class ModelWork(Frozen):
    """The sizes of an architecture that its speed depends on.

    `parameters_read` are those that one token passes through, the head included, the token embedding left out.
    `key_length` and `value_length` are those of the attention scores: with multi-head latent attention (MLA), whose
    cache holds one latent vector for all heads, rank + rope and rank.
    """

    name: str
    parameters: float
    parameters_read: float
    layers: int
    attention_layers: int
    query_heads: int
    key_length: int
    value_length: int
    kv_bytes_per_token: float
    window_bytes_per_token: float = 0.0
    window_tokens: int = 0
    recurrent_state_bytes: float = 0.0
    head_parameters: float = 0.0
    mixture_of_experts: bool = False
    latent_length: int = 0
    experts: int = 0
    experts_active: int = 0

    def cached_bytes(self, depth: float) -> float:
        """Bytes of KV cache that a token at this depth reads."""
        return self.kv_bytes_per_token * depth + self.window_bytes_per_token * min(depth, self.window_tokens)

    def score_operations(self, depth: float) -> float:
        """Floating point operations of attention for one token at this depth: 2 for each of QK' and PV."""
        lengths = 2.0 * (self.key_length + self.value_length)
        return self.attention_layers * self.query_heads * lengths * depth


class DeviceFacts(Frozen):
    """What the maker says: bytes/s of memory, and dense operations/s of matrix and vector units (None: unknown).

    `older_instructions_share`: the part of the matrix units that programs for the generation before reach. `guessed`:
    nobody says; the figures are what is common, and rows of the device outweigh them soon.
    """

    name: str
    kind: ChipKind
    bandwidth: float
    matrix_operations: float | None = None
    vector_operations: float | None = None
    older_instructions_share: float = 1.0
    guessed: bool = False
    source: tuple[str, ...] = ()


class EngineFacts(Frozen):
    """What computes. `runtime` is cuda, metal, rocm, vulkan or cpu; it and the backend are one class of engines.

    `flash_attention`: attention scores never leave the chip. `dequantizes`: prefill unpacks quantized weights to 16
    bits in memory before it multiplies them (llama.cpp on CUDA until its pull request 8075 of June 2024). `driver`:
    of Vulkan (radv, amdvlk), whose compilers differ. `micro_batch`: tokens; 0 is what the engine does by itself.
    """

    backend: str
    runtime: str
    version: str = ""
    flash_attention: bool = True
    dequantizes: bool = False
    over_http: bool = False
    speculation: str = ""
    driver: str = ""
    micro_batch: int = 0

    @property
    def engine(self) -> str:
        """The backend whose kernels compute."""
        return ENGINE_OF.get(self.backend, self.backend)

    @property
    def key(self) -> str:
        return f"{self.engine}/{self.runtime}"

    @property
    def micro_batch_tokens(self) -> int:
        return self.micro_batch or MICRO_BATCH_TOKENS.get(self.engine, OTHER_MICRO_BATCH_TOKENS)


class Cell(Frozen):
    """One figure that could be measured: `tokens` are generated or prefilled behind `depth` tokens of context."""

    model: ModelWork
    device: DeviceFacts
    engine: EngineFacts
    quantization: str
    weights_bytes: float
    phase: Phase
    tokens: int
    depth: int = 0

    @property
    def middle_depth(self) -> float:
        """The depth of the token in the middle of the test, which stands for all of them."""
        return self.depth + self.tokens / 2

    @property
    def read_bytes(self) -> float:
        """Bytes of weights that one token reads: of a mixture of experts, the active ones only."""
        return self.weights_bytes * min(1.0, self.model.parameters_read / self.model.parameters)

    @property
    def is_16_bit(self) -> bool:
        return self.weights_bytes >= 1.9 * self.model.parameters

    @property
    def is_bfloat(self) -> bool:
        """Whether weights are bfloat16, which not every chip and kernel multiplies as it does other 16-bit numbers."""
        return self.is_16_bit and "BF16" in self.quantization.upper()


class MeasuredSpeed(Frozen):
    """A cell and the tokens/s that somebody measured; `source` says who, for the user.

    `deviation`: of the logarithm of the mean, by the row's own repetitions; 0 where they are not known.
    """

    cell: Cell
    tokens_per_second: float
    source: str
    deviation: float = 0.0


def work_of(name: str, architecture: Architecture) -> ModelWork:
    """The sizes of a model of the catalog."""
    latent = architecture.latent_attention
    key_length = latent.kv_lora_rank + latent.rope_dimension if latent else architecture.head_dimension
    return ModelWork(
        name=name,
        parameters=architecture.parameters,
        parameters_read=architecture.parameters_read_per_token,
        layers=architecture.layers,
        attention_layers=architecture.full_attention_layers,
        query_heads=architecture.query_heads,
        key_length=key_length,
        value_length=latent.kv_lora_rank if latent else architecture.head_dimension,
        kv_bytes_per_token=architecture.kv_bytes_per_token_f16,
        recurrent_state_bytes=architecture.recurrent_state_bytes_f32,
        head_parameters=architecture.vocabulary_size * architecture.hidden_size,
        mixture_of_experts=architecture.experts is not None,
        latent_length=latent.kv_lora_rank if latent else 0,
        experts=architecture.experts.total if architecture.experts else 0,
        experts_active=architecture.experts.active if architecture.experts else 0,
    )
