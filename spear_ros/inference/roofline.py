"""The least time that a card can need for one chunk: operations and bytes, stage by stage.

Pure arithmetic on a model's sizes. A stage takes at least the longer of two times: its matrix
products at the card's rate, and its bytes at the card's memory bandwidth. Weights are read once
per stage (once per step for the expert: at full size its 0.62 GB fit into no cache). What fuses
away counts as nothing: norms, rotary positions, activations and softmax. The floor of a chunk is
the sum of its stages' floors; stages that run beside each other may go below it, by no more than
the smaller of each stage's two times.

Counted as the smallest known form of the network: the last language layer gives keys and values
alone, proprioception runs through the expert once (together with the first step, so that it costs
no weights of its own), the time embedding is a table.

One multiply-add is two operations; weights, keys and values are bfloat16 unless told otherwise.
"""

from dataclasses import dataclass, replace

from spear_ros.core.errors import UserError
from spear_ros.networks.config import GemmaConfig, Spear1Config, VitConfig

SIGLIP, MOGE, PREFILL, DENOISE = 'siglip', 'moge', 'prefill', 'denoise'
STAGES = (SIGLIP, MOGE, PREFILL, DENOISE)


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage cannot avoid."""

    flop: float
    """Operations of its matrix products."""
    bytes: float
    """Bytes read from the card's memory."""

    def __add__(self, other: 'Work') -> 'Work':
        return Work(self.flop + other.flop, self.bytes + other.bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a card can do."""

    name: str
    tflop_s: float
    """Dense bfloat16 matrix products with float32 sums, 1e12 operations / s."""
    gb_s: float
    """Memory bandwidth, 1e9 bytes / s."""
    source: str
    """Where the two figures come from, and whether they are a data sheet's or measured."""
    pattern: str = ''
    """What the driver calls the card contains this, lower case; empty = never looked up."""

    def compute_ms(self, work: Work) -> float:
        """Time of the matrix products alone."""
        return work.flop / self.tflop_s * 1e-9

    def memory_ms(self, work: Work) -> float:
        """Time of the bytes alone."""
        return work.bytes / self.gb_s * 1e-6

    def floor_ms(self, work: Work) -> float:
        """The longer of the two."""
        return max(self.compute_ms(work), self.memory_ms(work))


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What one chunk is asked of a model."""

    config: Spear1Config
    cameras: int = 2
    """2, or 1 without the wrist image."""
    text: int = 32
    """Instruction tokens, padding included."""
    steps: int = 0
    """Euler steps; 0 = the model's own."""
    weight_bytes: int = 2
    """Bytes per weight and per key and value: 2 = bfloat16, 4 = float32, 1 = FP8."""

    def __post_init__(self) -> None:
        if self.cameras not in (1, 2):
            raise UserError(f'cameras = {self.cameras}: a model sees 1 or 2 cameras.')
        if self.text < 1 or self.steps < 0 or self.weight_bytes not in (1, 2, 4):
            raise UserError(
                f'text = {self.text}, steps = {self.steps}, bytes per weight = {self.weight_bytes}:'
                ' text must be 1 or more, steps 0 or more, bytes 1, 2 or 4.'
            )

    @property
    def images(self) -> tuple[int, ...]:
        """Patches of each picture."""
        config = self.config
        return (config.external_tokens, config.wrist_tokens)[: self.cameras]

    @property
    def prefix(self) -> int:
        """Tokens that the language stack reads."""
        return sum(self.images) + self.text

    @property
    def euler_steps(self) -> int:
        """Steps of the flow."""
        return self.steps or self.config.flow.steps


CARDS = (
    # The two measured rows are products of 8192 x 8192 x 8192 on random data and device-to-device
    # copies (bytes read and written), through torch 2.11: what a perfect program could reach.
    Card(
        name='H200 SXM (measured rates)',
        tflop_s=790.0,
        gb_s=4300.0,
        source='measured: GEMM 788-798 TFLOP/s, copy 4.3 TB/s (data sheet 989 / 4.8)',
        pattern='h200',
    ),
    Card(
        name='H100 SXM (measured rates)',
        tflop_s=798.0,
        gb_s=3000.0,
        source='measured: GEMM 798 TFLOP/s, copy 3.0 TB/s (data sheet 989 / 3.35)',
        pattern='h100 80gb hbm3',
    ),
    Card(
        name='B200',
        tflop_s=2250.0,
        gb_s=8000.0,
        source='data sheet, NVIDIA HGX B200, dense',
        pattern='b200',
    ),
    Card(
        name='A100 SXM 80 GB',
        tflop_s=312.0,
        gb_s=2039.0,
        source='data sheet, NVIDIA A100, dense',
        pattern='a100-sxm4-80gb',
    ),
    Card(
        name='L40S',
        tflop_s=362.0,
        gb_s=864.0,
        source='data sheet, NVIDIA L40S, dense',
        pattern='l40s',
    ),
    Card(
        name='RTX 5090',
        tflop_s=209.5,
        gb_s=1792.0,
        source='NVIDIA RTX Blackwell architecture paper, dense, float32 sums',
        pattern='rtx 5090',
    ),
    Card(
        name='RTX 4090',
        tflop_s=165.0,
        gb_s=1000.0,
        source='NVIDIA Ada architecture paper (165.2 / 1008, rounded down), dense, float32 sums',
        pattern='rtx 4090',
    ),
    Card(
        name='RTX 3090',
        tflop_s=71.0,
        gb_s=936.0,
        source='NVIDIA GA102 architecture paper, dense, float32 sums',
        pattern='rtx 3090',
    ),
    Card(
        name='Jetson AGX Thor (T5000)',
        tflop_s=259.0,
        gb_s=273.0,
        source='data sheet: 2070 TFLOP/s FP4 sparse, halved three times (not stated for bfloat16)',
        pattern='thor',
    ),
    Card(
        name='Jetson AGX Orin 64 GB',
        tflop_s=42.5,
        gb_s=204.8,
        source='data sheet: 170 TOPS int8 sparse of the GPU, halved twice (not stated for float16)',
        pattern='orin',
    ),
)


def find_card(device_name: str) -> Card | None:
    """Return the card of the table whose name the driver's text contains, or None.

    A laptop's card bears the name of a larger one and is not in the table.
    """
    name = device_name.lower()
    if 'laptop' in name:
        return None
    return next((card for card in CARDS if card.pattern and card.pattern in name), None)


def stage_work(load: Workload) -> dict[str, Work]:
    """Operations and bytes of each of :data:`STAGES` for one chunk, batch 1."""
    return {
        SIGLIP: _siglip(load),
        MOGE: _moge(load),
        PREFILL: _prefill(load),
        DENOISE: _denoise(load),
    }


def floors_ms(load: Workload, card: Card) -> dict[str, float]:
    """Least milliseconds of each stage."""
    return {stage: card.floor_ms(work) for stage, work in stage_work(load).items()}


def chunk_floor_ms(load: Workload, card: Card) -> float:
    """Least milliseconds of one chunk on the device: the sum of the stages."""
    return sum(floors_ms(load, card).values())


def cost_table(config: Spear1Config, card: Card) -> list[tuple[str, float]]:
    """What cameras, steps, text and horizon do to the floor: rows of (what, milliseconds)."""
    rows = [
        (f'{n} camera{"s" * (n > 1)}', chunk_floor_ms(Workload(config=config, cameras=n), card))
        for n in (1, 2)
    ]
    for steps in (1, 2, 4, 5, 10, 20):
        rows.append((f'{steps} steps', chunk_floor_ms(Workload(config=config, steps=steps), card)))
    for text in (16, 32, 48, 64):
        rows.append(
            (f'{text} text tokens', chunk_floor_ms(Workload(config=config, text=text), card))
        )
    for horizon in (5, 10, 25, 50):
        other = replace(config, flow=replace(config.flow, horizon=horizon))
        rows.append((f'horizon {horizon}', chunk_floor_ms(Workload(config=other), card)))
    return rows


def _vit(config: VitConfig, images: tuple[int, ...], extra: int, weight_bytes: int) -> Work:
    """Encoder without projector; ``extra`` tokens per image (a class token)."""
    block = 4 * config.width**2 + 2 * config.width * config.mlp_width
    patch = 3 * config.patch**2 * config.width
    tokens = [n + extra for n in images]
    attention = sum(4 * n * n * config.width for n in tokens)
    flop = config.layers * (2 * sum(tokens) * block + attention) + 2 * sum(images) * patch
    return Work(flop, (config.layers * block + patch) * weight_bytes)


def _projector(inputs: int, outputs: int, tokens: int, weight_bytes: int) -> Work:
    return Work(2 * tokens * inputs * outputs, inputs * outputs * weight_bytes)


def _siglip(load: Workload) -> Work:
    config = load.config
    return _vit(config.siglip, load.images, 0, load.weight_bytes) + _projector(
        config.siglip.width, config.language.width, sum(load.images), load.weight_bytes
    )


def _moge(load: Workload) -> Work:
    config = load.config
    features = config.moge_layers * config.moge.width
    return _vit(config.moge, load.images, 1, load.weight_bytes) + _projector(
        features, config.language.width, sum(load.images), load.weight_bytes
    )


def _kv_weights(width: int, config: GemmaConfig) -> int:
    return 2 * width * config.kv_heads * config.head_dim


def _block_weights(width: int, mlp_width: int, config: GemmaConfig) -> int:
    rows = config.heads * config.head_dim
    return 2 * width * rows + _kv_weights(width, config) + 3 * width * mlp_width


def _prefill(load: Workload) -> Work:
    """The language stack over the prefix, the last layer's keys and values alone."""
    config = load.config.language
    full = _block_weights(config.width, config.mlp_width, config)
    weights = (config.layers - 1) * full + _kv_weights(config.width, config)
    attention = 4 * load.prefix**2 * config.heads * config.head_dim * (config.layers - 1)
    embedding = load.text * config.width
    return Work(2 * load.prefix * weights + attention, (weights + embedding) * load.weight_bytes)


def _denoise(load: Workload) -> Work:
    """All Euler steps of the expert; proprioception goes with the first."""
    config, language = load.config.expert, load.config.language
    horizon, steps = load.config.flow.horizon, load.euler_steps
    block = _block_weights(config.width, config.mlp_width, language)
    stack = language.layers * block
    # action_in, the action half of time_mix_in, time_mix_out, action_out
    ends = 2 * config.action_dim * config.width + 2 * config.width**2
    heads = language.heads * language.head_dim
    keys = load.prefix + 1 + horizon
    attention = 4 * horizon * keys * heads * language.layers
    proprio = 2 * stack + 4 * (load.prefix + 1) * heads * language.layers
    flop = steps * (2 * horizon * (stack + ends) + attention) + proprio
    kv = language.layers * 2 * keys * language.kv_heads * language.head_dim
    return Work(flop, steps * (stack + ends + kv) * load.weight_bytes)
