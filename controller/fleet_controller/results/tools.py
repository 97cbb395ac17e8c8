"""What the measuring tools call things, in one place for those who read their output and those who print it."""

from fleet_controller.results.columns import Metric

LLAMA_BENCH, LLAMA_BENCHY, MLX_LM_BENCHMARK = "llama-bench", "llama-benchy", "mlx_lm.benchmark"
VLLM_BENCH, SGLANG_BENCH = "vllm-bench", "sglang-bench"

# llama-bench's columns that are of the tool's table and not of the figure; the newer names stand beside the older ones.
LLAMA_BENCH_FIELDS = (
    "model_type",
    "model_size",
    "model_n_params",
    "backends",
    "n_gpu_layers",
    "n_threads",
    "n_cpu_moe",
    "n_batch",
    "n_ubatch",
    "type_k",
    "type_v",
    "split_mode",
    "main_gpu",
    "no_kv_offload",
    "flash_attn",
    "devices",
    "tensor_split",
    "tensor_buft_overrides",
    "cpu_mask",
    "cpu_strict",
    "poll",
    "use_mmap",
    "use_direct_io",
    "load_mode",
    "lazy_mode",
    "embeddings",
    "no_op_offload",
    "no_host",
    "repack",
    "fit_target",
)

# llama-benchy: kind -> its JSON key and the stem of its CSV columns, for the prefill and the decode row of a test.
BENCHY_PREFILL = {
    Metric.PREFILL: ("pp_throughput", "t_s"),
    Metric.PREFILL_PER_REQUEST: ("pp_req_throughput", "t_s_req"),
    Metric.TIME_TO_FIRST_RESPONSE: ("ttfr", "ttfr"),
    Metric.ESTIMATED_PREFILL_TIME: ("est_ppt", "est_ppt"),
    Metric.TIME_TO_FIRST_TOKEN: ("e2e_ttft", "e2e_ttft"),
}
BENCHY_DECODE = {
    Metric.DECODE: ("tg_throughput", "t_s"),
    Metric.DECODE_PER_REQUEST: ("tg_req_throughput", "t_s_req"),
    Metric.PEAK_DECODE: ("peak_throughput", "peak_ts"),
    Metric.PEAK_PER_REQUEST: ("peak_req_throughput", "peak_ts_req"),
}
# With --enable-prefix-caching the context is measured as a test of its own.
BENCHY_CONTEXT = {
    Metric.PREFILL: Metric.CONTEXT_PREFILL,
    Metric.PREFILL_PER_REQUEST: Metric.CONTEXT_PREFILL_PER_REQUEST,
    Metric.DECODE: Metric.CONTEXT_DECODE,
    Metric.DECODE_PER_REQUEST: Metric.CONTEXT_DECODE_PER_REQUEST,
    Metric.PEAK_DECODE: Metric.CONTEXT_PEAK,
    Metric.PEAK_PER_REQUEST: Metric.CONTEXT_PEAK_PER_REQUEST,
    Metric.TIME_TO_FIRST_RESPONSE: Metric.CONTEXT_TIME_TO_FIRST_RESPONSE,
    Metric.ESTIMATED_PREFILL_TIME: Metric.CONTEXT_ESTIMATED_PREFILL_TIME,
    Metric.TIME_TO_FIRST_TOKEN: Metric.CONTEXT_TIME_TO_FIRST_TOKEN,
}


def decimals(client: str) -> int:
    """How many the tool prints."""
    return 3 if client == MLX_LM_BENCHMARK else 2
