"""What a training run is, in full: one frozen dataclass per kind of model.

A recipe (:mod:`spear_ros.training.recipes`) returns one of these; ``key=value`` on the command line
changes single fields; the run folder keeps the result as ``config.json`` and refuses to go on with
another one.
"""

from dataclasses import dataclass, field
from typing import Literal

from spear_ros.checkpoints.spear1 import Sampling
from spear_ros.core.errors import UserError
from spear_ros.networks.moge_head import MogeConfig
from spear_ros.networks.spear1 import Spear1Config


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, linear warm-up, cosine decay."""

    learning_rate: float
    warmup_steps: int = 100
    final_ratio: float = 0.1
    """Learning rate at the last step, as a share of the highest."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    """Of matrices; never of norms, biases, tables and embeddings."""
    clip_norm: float = 1.0
    multipliers: dict[str, float] = field(default_factory=dict)
    """Parameter name prefix -> factor of the learning rate; the longest prefix wins."""

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < 1:
            raise UserError(f'learning_rate = {self.learning_rate} must lie between 0 and 1.')
        if self.warmup_steps < 0:
            raise UserError(f'warmup_steps = {self.warmup_steps} must not be negative.')
        if not 0 <= self.final_ratio <= 1:
            raise UserError(f'final_ratio = {self.final_ratio} must lie between 0 and 1.')
        if not self.clip_norm > 0:
            raise UserError(f'clip_norm = {self.clip_norm} must be positive.')
        if any(not 0 < m <= 100 for m in self.multipliers.values()):
            raise UserError(
                f'multipliers = {self.multipliers}: each must lie between 0 and 100; freeze parts '
                'with "train" instead.'
            )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the parameters lie on the processes that torchrun started."""

    replicas: int = 1
    """HSDP: the world is divided into so many groups, each holding all shards of the model; the
    gradients are averaged between them. 1 = one group (FSDP), the world size = DDP."""
    reshard: bool = False
    """Free the gathered weights between forward and backward: less memory, more traffic."""
    timeout_s: float = 1800.0
    """A collective that waits longer says that another process died; above the longest
    validation, during which all but one process wait."""


@dataclass(frozen=True, kw_only=True)
class SavingConfig:
    """Checkpoints to resume from."""

    every_steps: int = 1000
    keep: int = 2
    """Older ones are deleted once a newer one is complete."""

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 1:
            raise UserError(
                f'saving: every_steps = {self.every_steps} and keep = {self.keep} must be at '
                'least 1.'
            )


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """``metrics.jsonl`` is always written, TensorBoard's event files besides."""

    every_steps: int = 20
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise UserError(f'logging.every_steps = {self.every_steps} must be at least 1.')


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What all kinds of training share."""

    recipe: str
    steps: int
    batch_size: int
    """Samples per update, over all processes."""
    optimizer: OptimizerConfig
    accumulate: int = 1
    """Every process splits its share of the batch into so many passes."""
    seed: int = 0
    device: Literal['auto', 'cpu', 'cuda'] = 'auto'
    precision: Literal['bfloat16', 'float32'] = 'bfloat16'
    """Of the arithmetic; master weights, gradients and averages are always float32."""
    frozen_dtype: Literal['float32', 'bfloat16'] = 'float32'
    """Storage of weights that are not trained."""
    ema_decay: float = 0.999
    """0 = no moving average; it warms up as (1 + n) / (10 + n)."""
    recompute: bool = False
    """Activation checkpointing of the transformer blocks."""
    deterministic: bool = False
    """Only deterministic GPU kernels (slower). A CPU run always is."""
    max_bad: int = 10
    """So many batches that cannot be read, or updates that are not finite, end the run."""
    max_minutes: float = 0.0
    """Save and stop after so long (0 = never); the same command goes on."""
    validate_every: int = 0
    """Steps between validations; 0 = only at the end."""
    check_memory: bool = True
    """Refuse to start when the estimate exceeds the device."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    saving: SavingConfig = field(default_factory=SavingConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        for name in ('steps', 'batch_size', 'accumulate', 'max_bad'):
            if getattr(self, name) < 1:
                raise UserError(f'{name} = {getattr(self, name)} must be at least 1.')
        for name in ('seed', 'validate_every', 'max_minutes'):
            if getattr(self, name) < 0:
                raise UserError(f'{name} = {getattr(self, name)} must not be negative.')
        if not 0 <= self.ema_decay < 1:
            raise UserError(f'ema_decay = {self.ema_decay} must lie between 0 and 1.')
        if self.frozen_dtype == 'bfloat16' and self.precision == 'float32':
            raise UserError(
                'frozen_dtype = bfloat16 needs precision = bfloat16; set frozen_dtype=float32 for '
                'arithmetic in float32.'
            )
        if self.optimizer.warmup_steps > self.steps:
            raise UserError(
                f'warmup_steps = {self.optimizer.warmup_steps} is more than steps = {self.steps}.'
            )


@dataclass(frozen=True, kw_only=True)
class VlaDataConfig:
    """Shards of :mod:`spear_ros.data.shards`."""

    shards: tuple[str, ...] = ()
    """Folders; given on the command line."""
    mixture: str = ''
    """Name or file of a mixture; '' = every sample counts alike."""
    stats: str = ''
    """A file of ``spear data stats``; '' = computed at the start and kept in the run folder;
    'init' = those of the checkpoint that is trained further (other data: nothing is compared)."""
    stats_kind: Literal['quantile', 'minmax', 'mean_std'] = 'quantile'
    validation: tuple[str, ...] = ()
    """Folders for the open-loop error; '' = the training shards (then named so)."""
    external_size: tuple[int, int] = (240, 320)
    """Rows and columns that the loader hands over; the network's size saves work."""
    wrist_size: tuple[int, int] = (160, 160)
    wrist: bool = True
    hide_wrist: float = 0.1
    """Share of samples whose wrist picture is hidden, so that the model can do without."""
    jitter: float = 0.2
    """Random brightness, contrast and saturation within 1 +- this; 0 = none."""
    resident: bool = False
    """Decode all shards once and keep them on the device (small data sets)."""
    per_picture: int = 1
    """Instructions of one picture side by side in a batch: the encoders then run once for them.
    For shards of ``spear demonstrations --relabel``; needs ``resident``."""
    threads: int = 2
    open_shards: int = 8
    """Of shards on disk; ``resident`` data is mixed as a whole."""

    def __post_init__(self) -> None:
        for name in ('hide_wrist', 'jitter'):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f'data.{name} = {getattr(self, name)} must lie between 0 and 1.')
        if self.open_shards < 1:
            raise UserError(f'data.open_shards = {self.open_shards} must be at least 1.')
        if self.per_picture < 1 or (self.per_picture > 1 and not self.resident):
            raise UserError(
                f'data.per_picture = {self.per_picture} must be at least 1, and more than 1 needs '
                'data.resident=true; set that, or data.per_picture=1.'
            )


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates of the language stack's and SigLIP's matrices; they are merged on export."""

    rank: int = 0
    """0 = none."""
    alpha: float = 16.0
    """The update counts alpha / rank times."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f'lora.rank = {self.rank} must not be negative; 0 = none.')


@dataclass(frozen=True, kw_only=True)
class GroundingConfig:
    """Losses that ask where things are, see :mod:`spear_ros.training.grounding`. Ours, for networks
    that start from nothing: PaliGemma has learnt it before SPEAR-1 begins."""

    patch_weight: float = 0.0
    """What is in each patch; 0 = not asked."""
    point_weight: float = 0.0
    """Which patches show the objects of the instruction, and where any object is; 0 = not asked."""
    place_weight: float = 0.0
    """Where the objects of the instruction are; 0 = not asked."""
    layers: int = 1
    """So many of the last layers' inputs are asked for points and places, their mean counts."""
    words: tuple[str, ...] = ()
    """Words of objects' names that patches are told apart by."""

    def __post_init__(self) -> None:
        for name in ('patch_weight', 'point_weight', 'place_weight'):
            if getattr(self, name) < 0:
                raise UserError(f'grounding.{name} = {getattr(self, name)} must not be negative.')
        if self.layers < 1:
            raise UserError(f'grounding.layers = {self.layers} must be at least 1.')
        if self.patch_weight > 0 and not self.words:
            raise UserError('grounding.words is empty and grounding.patch_weight asks for them.')

    @property
    def asked(self) -> bool:
        """Whether there is any such loss."""
        return max(self.patch_weight, self.point_weight, self.place_weight) > 0


@dataclass(frozen=True, kw_only=True)
class VlaConfig(TrainConfig):
    """SPEAR-1."""

    model: Spear1Config
    data: VlaDataConfig = field(default_factory=VlaDataConfig)
    init: str = ''
    """Checkpoint folder to start from (SPEAR-1 or SPEAR-VLM); '' = fresh weights."""
    fresh_expert: bool = False
    """Draw the action expert, at any size, although ``init`` has one; SPEAR-VLM never has."""
    moge: str = ''
    """Folder of a MoGe-1 checkpoint for the frozen branch; '' = what ``init`` has."""
    tokenizer: str = ''
    """A tokenizer.json; '' = the one of ``init``, else the small one is built."""
    train: tuple[str, ...] = ('expert', 'vlm.siglip', 'vlm.language', 'projector')
    """Parts that learn: name prefixes; ``projector`` = both projectors. For MoGe see below."""
    depth_branch: Literal['frozen', 'trained', 'absent'] = 'frozen'
    """MoGe in this stage. Anything but ``frozen`` is an experiment (in the paper's ablation trained
    is worse). ``absent``: visual tokens are SigLIP's alone; the export is an ordinary checkpoint
    whose depth projector is zero."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    export_dtype: Literal['stored', 'bfloat16'] = 'stored'
    """Of the exported weights: as trained (float32), or half of that."""
    grounding: GroundingConfig = field(default_factory=GroundingConfig)
    """Further losses on demonstrations that know what they show; their heads are not exported."""
    sampling: Sampling = field(default_factory=Sampling)
    """Written into the export."""
    tau_per_sample: int = 1
    """Flow times drawn for each sample in one update, the pictures' features shared: cheap."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_per_sample < 1:
            raise UserError(f'tau_per_sample = {self.tau_per_sample} must be at least 1.')
        horizon = self.model.flow.horizon
        if self.sampling.execute_steps > max(1, horizon - 1):
            raise UserError(
                f'sampling.execute_steps = {self.sampling.execute_steps}: a chunk has {horizon} '
                f'knots; give at most {max(1, horizon - 1)}.'
            )
        if self.grounding.layers > self.model.language.layers:
            raise UserError(
                f'grounding.layers = {self.grounding.layers} is more than the language stack has: '
                f'it has {self.model.language.layers} layers.'
            )


@dataclass(frozen=True, kw_only=True)
class VlmDataConfig:
    """Questions and answers about pictures, see :mod:`spear_ros.training.question_data`."""

    questions: tuple[str, ...] = ()
    """Folders with ``questions*.jsonl`` and the pictures they name."""
    mixture: str = ''
    """Name or file of a mixture whose parts are sources of questions; '' = all count alike."""
    validation: tuple[str, ...] = ()
    text_length: int = 96
    """Tokens of question and answer together."""
    by_picture: bool = False
    """batch_size counts pictures, each with all its questions (up to 8): both encoders, the larger
    part of the work of small models, run once per picture."""
    jitter: float = 0.2
    threads: int = 2

    def __post_init__(self) -> None:
        if self.by_picture and self.mixture:
            raise UserError(
                'data.by_picture = true and data.mixture exclude each other: shares are counted '
                'in questions; leave one out.'
            )


@dataclass(frozen=True, kw_only=True)
class VlmConfig(TrainConfig):
    """SPEAR-VLM; one run per phase, the second starts from the first's export."""

    model: Spear1Config
    phase: Literal[1, 2]
    """1: the MoGe projector, the SigLIP projector and the 3-D tokens' embeddings; 2: see train."""
    train: tuple[str, ...] = ('vlm.siglip', 'vlm.moge', 'vlm.language', 'projector')
    """Parts that learn in phase 2; the default trains both encoders, as the best row of the paper's
    ablation does (its recipe text says frozen)."""
    data: VlmDataConfig = field(default_factory=VlmDataConfig)
    init: str = ''
    moge: str = ''
    tokenizer: str = ''
    spatial_weight: float = 2.0
    """lambda: factor of the loss on 3-D tokens, in phase 2."""
    number_spread: float = 0.0
    """Standard deviation, in bins, of the target around the right 3-D or location token; 0 = that
    one alone [paper]. With little data, that neighbours are neighbours is not learnt by itself."""
    export_dtype: Literal['stored', 'bfloat16'] = 'stored'
    """Of the exported weights: as trained (float32), or half of that."""
    depth_branch: Literal['present', 'absent'] = 'present'
    """``absent``, for ablations: visual tokens are SigLIP's alone; an ordinary checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.number_spread < 0:
            raise UserError(f'number_spread = {self.number_spread} must not be negative.')


@dataclass(frozen=True, kw_only=True)
class MogeDataConfig:
    """Pictures with exact depth, see :mod:`spear_ros.training.depth_data`."""

    scenes: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    jitter: float = 0.3
    threads: int = 2
    mirror: bool = True
    """Left and right exchanged half of the time (the world may be mirrored, a robot's not)."""


@dataclass(frozen=True, kw_only=True)
class MogeTrainConfig(TrainConfig):
    """MoGe-1 at any width, losses of the publication (arXiv 2410.19115)."""

    model: MogeConfig
    data: MogeDataConfig = field(default_factory=MogeDataConfig)
    image_size: tuple[int, int] = (168, 224)
    global_weight: float = 1.0
    local_weight: float = 1.0
    normal_weight: float = 1.0
    mask_weight: float = 1.0
    local_levels: tuple[int, ...] = (4, 16)
    """Patches of 1 / level of the picture's diagonal are aligned on their own."""
    local_patches: int = 16
    """Anchors per level and picture."""
