"""The twenty launches as data: what operators type, what of it a CPU serves, what is left out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

EXTRA = ("--mamba-radix-cache-strategy", "extra_buffer")
LAZY = ("--mamba-radix-cache-strategy", "extra_buffer_lazy")
NO_BUFFER = ("--mamba-radix-cache-strategy", "no_buffer")
BF16 = ("--mamba-ssm-dtype", "bfloat16")
PAGE_64 = ("--page-size", "64")
TP_2 = ("--tp", "2")
DP_ATTENTION = ("--tp", "2", "--dp-size", "2", "--enable-dp-attention")
# SGLang's direct copies are the only ones that the CPU platform has.
HOST = ("--enable-hierarchical-cache", "--hicache-ratio", "2")
STORED = (
    *("--hicache-storage-prefetch-policy", "wait_complete"),
    *("--hicache-io-backend", "direct", "--hicache-mem-layout", "page_first_direct"),
)
STORED_IN = "--hicache-storage-backend"
OVER_NIXL = ("--disaggregation-transfer-backend", "nixl")
PREFILL = ("--disaggregation-mode", "prefill", *OVER_NIXL)
DECODE = ("--disaggregation-mode", "decode", *OVER_NIXL)
DECODE_CACHE = "--disaggregation-decode-enable-radix-cache"
EVENTS = ("--kv-events-config", '{"publisher": "zmq", "endpoint": "tcp://127.0.0.1:*"}')

#: Steps, branches and tokens of a draft as operators have them; Qwen3.5's own head drafts.
NEXTN = (
    *("--speculative-algorithm", "NEXTN", "--speculative-num-steps", "3"),
    *("--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "4"),
)

#: Why a CPU cannot serve what a launch says, by what the launch says.
FP8_KV = "fp8 KV (SGLang wants AMX)"
DSPARK = "DSPARK speculation (SGLang has it for accelerators alone)"
DRAFTS_OF_REPLICAS = "speculation (with DP attention the CPU platform did not serve it in time)"
DRAFT_HEAD = "MTP (no draft head in the tiny model)"
ATTENTION = "the attention backend (a GPU's kernels)"
QUANTISED = "quantised weights (a GPU's kernels)"
ROUTER = "the router"
RANKS_OF_PAIRS = "tensor parallelism (four busy ranks took two cores ten seconds a request)"


@dataclass(frozen=True)
class Launch:
    """One launch.

    Attributes:
        number: of the row.
        model: what operators serve, and on what.
        typed: their flags that touch the cache, shortened.
        tiny: model of the same family, or the nearest that there is.
        flags: what is served here.
        left_out: parts of ``typed`` that are not, each with the reason.
        stand_in: what of the model is another's here.
        refused: words of the message, where the launch has to end before the model loads.
        policy: our flags, beside which stock is served without any.
        decode: flags of the decode server, where ``flags`` are a prefill server's.
    """

    number: int
    model: str
    typed: str
    tiny: str
    flags: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    stand_in: str = ""
    refused: str = ""
    policy: tuple[str, ...] = ("--marconi-evict-policy", "3")
    decode: tuple[str, ...] = ()

    @property
    def rounds(self) -> bool:
        """States lose digits when they are stored: what a request resumes at decides outputs."""
        return "bfloat16" in self.flags or "--enable-int8-mamba-checkpoint" in self.flags

    @property
    def drafts(self) -> bool:
        """A draft model proposes tokens, and the model itself verifies them."""
        return "--speculative-algorithm" in self.flags

    @property
    def decode_caches(self) -> bool:
        """The decode server has a prefix cache, and so takes our flags."""
        return DECODE_CACHE in self.decode

    @property
    def stores_in_mooncake(self) -> bool:
        """What the host tier evicts goes to a Mooncake store."""
        return (STORED_IN, "mooncake") in pairwise(self.flags)

    def undivided(self) -> Launch:
        """The launch on one server, which prefills and decodes."""
        return replace(self, flags=self.flags[len(PREFILL) :], decode=())

    def differs(self) -> tuple[str, ...]:
        """All that is not as operators have it."""
        return (*self.left_out, *((self.stand_in,) if self.stand_in else ()))


_MTP = "EAGLE or NEXTN 3/1/4"
_K3 = "K3's gate and latent experts (Kimi-Linear's instead)"
_K3_IN_REPLICAS = (
    "Kimi's layers (Qwen3-Next's instead: SGLang's Kimi-Linear does not run with DP attention)"
)
_DECODE = "--disaggregation-mode is 'decode'"

LAUNCHES: tuple[Launch, ...] = (
    Launch(
        1,
        "Qwen3-Next-80B-A3B-Thinking",
        "tp 2, extra_buffer, page 64, chunks, HiCache",
        "qwen3-next",
        (*TP_2, *EXTRA, *PAGE_64, "--chunked-prefill-size", "128", *HOST),
        (ATTENTION,),
    ),
    Launch(
        2,
        "Qwen3-Next-80B-A3B-Instruct",
        "tp 4, lpm, extra_buffer, bf16 states, ratio 0.9, page 1",
        "qwen3-next",
        (*TP_2, "--schedule-policy", "lpm", *EXTRA, *BF16, "--page-size", "1"),
    ),
    Launch(
        3,
        "Qwen3.5-397B NVFP4, B200",
        f"fp8 KV, bf16 states, {_MTP}, page 64, HiCache write_through_selective",
        "qwen3.5-mtp",
        (
            *(*EXTRA, *BF16, *NEXTN, *PAGE_64, *HOST),
            *("--hicache-write-policy", "write_through_selective"),
        ),
        (FP8_KV, ATTENTION, QUANTISED),
    ),
    Launch(
        4,
        "the same, DP attention behind a router",
        "and --dp N --enable-dp-attention --enable-dp-lm-head",
        "qwen3.5",
        (*DP_ATTENTION, "--enable-dp-lm-head", *EXTRA, *BF16, *PAGE_64),
        (FP8_KV, DRAFTS_OF_REPLICAS, ATTENTION, QUANTISED, ROUTER),
    ),
    Launch(
        5,
        "Qwen3.5-397B-FP8, H200",
        "EAGLE 3/1/4, fp8 KV, --disable-radix-cache",
        "qwen3.5",
        ("--disable-radix-cache",),
        refused="--disable-radix-cache is set",
    ),
    Launch(
        6,
        "Qwen3.5-4B",
        "--max-mamba-cache-size, --enable-cache-report",
        "qwen3.5",
        (*EXTRA, "--enable-cache-report"),
    ),
    Launch(
        7,
        "Qwen3.5-9B",
        "extra_buffer, page 64, tp 4, HiCache write_through, file storage",
        "qwen3.5",
        (
            *(*TP_2, *EXTRA, *PAGE_64, *HOST, "--hicache-write-policy", "write_through"),
            *(STORED_IN, "file", *STORED),
        ),
    ),
    Launch(
        8,
        "Qwen3.5-9B",
        "extra_buffer, page 64, tp 4, long chunks, HiCache write_through, mooncake",
        "qwen3.5",
        (
            *(*TP_2, *EXTRA, *PAGE_64, "--chunked-prefill-size", "2048"),
            *(*HOST, "--hicache-write-policy", "write_through"),
            *(STORED_IN, "mooncake", *STORED),
        ),
    ),
    Launch(
        9,
        "Qwen3.6-27B",
        "tp 2, deterministic inference, long context",
        "qwen3.5",
        (*TP_2, *EXTRA, "--random-seed", "42"),
        ("deterministic inference (a GPU's attention backends)",),
    ),
    Launch(
        10,
        "Qwen3.6-27B, RDNA4",
        "no_buffer, 48 states, chunks",
        "qwen3.5",
        (*NO_BUFFER, "--chunked-prefill-size", "128"),
    ),
    Launch(
        11,
        "Qwen3.8-27B-NVFP4, RTX PRO 6000",
        "chunks, DSPARK speculation, extra_buffer_lazy, a ratio",
        "qwen3.5",
        (*LAZY, "--chunked-prefill-size", "128"),
        (DSPARK, ATTENTION, QUANTISED),
    ),
    Launch(
        12,
        "Qwen3.8-27B INT4, 2x RTX 3090",
        "tp 2, fp8 KV, MTP 4, HiCache",
        "qwen3.5-mtp",
        (*TP_2, *EXTRA, *NEXTN, *HOST),
        (FP8_KV, QUANTISED),
    ),
    Launch(
        13,
        "Qwen3.8-2.4T, 16x GB300, Dynamo",
        f"tp 16, fp8 KV, bf16 states, extra_buffer, page 64, {_MTP}, KV events",
        "qwen3.5-mtp",
        (*TP_2, *BF16, *EXTRA, *NEXTN, *PAGE_64, *EVENTS),
        (FP8_KV, ROUTER),
    ),
    Launch(
        14,
        "the same, 2P1D over nixl: a decode server",
        "--disaggregation-mode decode",
        "qwen3.5",
        DECODE,
        refused=_DECODE,
    ),
    Launch(
        15,
        "Kimi-K3, 32 GPUs",
        "ep 32, DP attention, fp8 KV, bf16 states, extra_buffer_lazy",
        "qwen3-next",
        (*DP_ATTENTION, *LAZY, *BF16),
        (FP8_KV, "expert parallelism"),
        stand_in=_K3_IN_REPLICAS,
    ),
    Launch(
        16,
        "Kimi-K3, 60 pods",
        "HiCache ratio 6 write_back, behind a KV router",
        "kimi-linear",
        (
            *(*EXTRA, "--enable-hierarchical-cache", "--hicache-ratio", "6"),
            *("--hicache-write-policy", "write_back"),
        ),
        (ROUTER,),
        stand_in=_K3,
    ),
    Launch(
        17,
        "GLM-5.3-Flash TP4, RTX PRO 6000",
        "HiCache write_through, chunks; or PD over nixl",
        "qwen3-next",
        (
            *(*PREFILL, *EXTRA, *HOST, "--hicache-write-policy", "write_through"),
            *("--chunked-prefill-size", "128"),
        ),
        stand_in="GLM's layers (Qwen3-Next's instead)",
        decode=(*DECODE, *EXTRA),
    ),
    Launch(
        18,
        "Nemotron-3-Ultra",
        "tp 8, extra_buffer; tips: fp16 states with stochastic rounding, MTP, DP attention, fp8 KV",
        "nemotron-h",
        (*TP_2, *EXTRA),
        (ATTENTION, FP8_KV, DRAFT_HEAD, "stochastic rounding (a GPU's kernel)"),
    ),
    Launch(
        19,
        "Ling-3.0-flash FP8",
        "tp 4, ep 4, NEXTN, long context",
        "qwen3.5-mtp",
        (*TP_2, *EXTRA, *NEXTN),
        (QUANTISED, "expert parallelism"),
        stand_in="Ling's layers (Qwen3.5's instead)",
    ),
    Launch(
        20,
        "Nemotron-3-Super FP8, Dynamo",
        "tp 4; or 2+2 disaggregated over nixl",
        "nemotron-h",
        (*PREFILL, *EXTRA, *EVENTS),
        (QUANTISED, RANKS_OF_PAIRS),
        decode=(*DECODE, *EXTRA),
    ),
)

#: Modes that no row has and that operators are advised to try, and a model that none has.
MODES: tuple[Launch, ...] = (
    Launch(
        21,
        "int8 checkpoints of states",
        "--enable-int8-mamba-checkpoint",
        "qwen3-next",
        (*EXTRA, "--enable-int8-mamba-checkpoint"),
    ),
    Launch(22, "pipeline stages", "--pp-size 2", "qwen3.5", (*EXTRA, "--pp-size", "2")),
    Launch(
        23,
        "mixed chunks",
        "--enable-mixed-chunk, --mamba-max-states-per-path 1",
        "falcon-h1",
        (
            *(*EXTRA, "--enable-mixed-chunk", "--chunked-prefill-size", "128"),
            *("--mamba-max-states-per-path", "1"),
        ),
    ),
    Launch(24, "Kimi-Linear-48B-A3B-Instruct", "no flags", "kimi-linear", ()),
    Launch(
        25,
        "a decode server with a prefix cache, beside its prefill server",
        f"{DECODE_CACHE}, no_buffer",
        "qwen3.5",
        (*PREFILL, *NO_BUFFER),
        decode=(*DECODE, *NO_BUFFER, DECODE_CACHE),
    ),
)
ALL = (*LAUNCHES, *MODES)


@dataclass
class Outcome:
    """What came of one launch.

    Attributes:
        served: policy 3 served it, or it was refused with the words that it should be.
        equal: answers that were stock's, of ``asked``; ``None`` where nothing was served.
        starved: requests under load that SGLang gave up for want of memory.
        drafts: tokens that a draft model proposed to the policy's server, and ``right`` of them.
        problems: what was wrong, in words.
    """

    number: int
    served: bool = False
    core: str = ""
    asked: int = 0
    equal: int | None = None
    stock_cached: int = 0
    cached: int = 0
    evicted_states: int = 0
    evicted_kv: int = 0
    under_load: int = 0
    cancelled: int = 0
    starved: int = 0
    drafts: int = 0
    right: int = 0
    message: str = ""
    problems: list[str] = field(default_factory=list)
