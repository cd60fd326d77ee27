"""Sizes and open choices of every network, as frozen dataclasses.

Sources named in the comments: [paper] SPEAR-1, arXiv 2511.17411; [pi0] Physical-Intelligence/openpi
at 15a9616; [PaliGemma] google/paligemma-3b; [MoGe] microsoft/MoGe v1 at 0744441. A field marked
"unconfirmed" is one that the sources leave open: the value is our default, not a known fact.
"""

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """One vision transformer (SigLIP or the DINOv2 of MoGe)."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    table_rows: int
    """Rows of the grid that the stored positional table was trained on."""
    table_columns: int
    patch: int = 14
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ('width', 'layers', 'heads', 'mlp_width', 'table_rows', 'table_columns'):
            _positive(type(self).__name__, name, getattr(self, name))
        if self.width % self.heads:
            raise ValueError(f'VitConfig.heads: {self.heads} does not divide width {self.width}.')

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class GemmaConfig:
    """The language stack; the action expert shares layers, heads, kv_heads and head_dim."""

    vocab_size: int
    """Rows of the embedding table, the 3-D tokens included. Ids come from the tokenizer; which ids
    SPEAR-VLM gave its 1024 3-D tokens is unconfirmed, both readings need 257216 + 1024 rows."""
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ('vocab_size', 'width', 'layers', 'heads', 'kv_heads', 'head_dim', 'mlp_width'):
            _positive(type(self).__name__, name, getattr(self, name))
        if self.heads % self.kv_heads:
            raise ValueError(
                f'GemmaConfig.kv_heads: {self.kv_heads} does not divide heads {self.heads}.'
            )
        if self.head_dim % 2:
            raise ValueError(f'GemmaConfig.head_dim: {self.head_dim} must be even (rotary halves).')


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """The action expert: same depth and heads as the language stack, own widths.

    Width 1024 and mlp 4096 are [pi0]'s 311 M. The paper's "hidden 4096, about 300 M" cannot both
    hold; K and V must match the language stack's, the width is free.
    """

    width: int = 1024
    mlp_width: int = 4096
    action_dim: int = 8
    """[x y z | w x y z | gripper]."""
    proprio_dim: int = 8
    """Position, quaternion, gripper: unconfirmed, the paper says pose + gripper."""
    time_min_period: float = 4e-3
    """[pi0] sine-cosine embedding of tau with width / 2 log-spaced periods."""
    time_max_period: float = 4.0

    def __post_init__(self) -> None:
        _positive('ExpertConfig', 'width', self.width)
        _positive('ExpertConfig', 'mlp_width', self.mlp_width)
        if self.width % 2:
            raise ValueError(f'ExpertConfig.width: {self.width} must be even (sine and cosine).')
        if self.action_dim != 8:
            raise ValueError(f'ExpertConfig.action_dim: {self.action_dim} must be 8 (xyz, q, g).')


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Flow matching on R^3 x S^3 x R^1; tau = 0 is noise, tau = 1 is data [paper]."""

    horizon: int = 5
    """Actions per chunk [paper]: H = 5 at 5 Hz."""
    steps: int = 10
    """Euler steps from tau 0 to 1: unconfirmed, [pi0] uses 10."""
    beta_alpha: float = 1.5
    """tau = tau_max (1 - b), b ~ Beta(alpha, 1). "Beta" [paper]; 1.5 is [pi0]'s, unconfirmed."""
    tau_max: float = 0.999
    """[pi0]'s margin before the data end, unconfirmed."""
    rotation_path: Literal['s3', 'linear'] = 's3'
    """'linear' is the R^4 ablation of the paper's Table 11."""
    rotation_loss: Literal['cos+geo', 'mse', 'cos+mse', 'cos'] = 'cos+geo'
    """cosine + geodesic is [paper]; 'mse' is the principled regression (no mode seeking). The
    linear path has no geodesic term: 'cos+geo' means 'cos' there (Table 11, linear cosine)."""
    geodesic_step: float = 0.1
    """delta of the paper's geodesic term: unconfirmed, 1 / steps is the natural choice."""
    translation_weight: float = 1.0
    rotation_weight: float = 1.0
    """Weight of the whole rotation loss: unconfirmed."""
    geodesic_weight: float = 1.0
    """Weight of the geodesic (or mse) term against the cosine term: unconfirmed."""
    gripper_weight: float = 1.0
    """The gripper is a fourth linear dimension: its loss is not specified in the paper."""

    def __post_init__(self) -> None:
        for name in ('horizon', 'steps'):
            _positive('FlowConfig', name, getattr(self, name))
        if not self.beta_alpha > 0:
            raise ValueError(f'FlowConfig.beta_alpha: {self.beta_alpha} must be above 0.')
        if not 0 < self.tau_max < 1:
            raise ValueError(f'FlowConfig.tau_max: {self.tau_max} must lie between 0 and 1.')
        if not 0 < self.geodesic_step <= 1:
            raise ValueError(f'FlowConfig.geodesic_step: {self.geodesic_step} must be in (0, 1].')
        for name, allowed in (
            ('rotation_path', ('s3', 'linear')),
            ('rotation_loss', ('cos+geo', 'mse', 'cos+mse', 'cos')),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f'FlowConfig.{name}: {getattr(self, name)!r} is none of {allowed}')


@dataclass(frozen=True, kw_only=True)
class Spear1Config:
    """All of SPEAR-1: every size and every open point, each one field with its source."""

    siglip: VitConfig
    moge: VitConfig
    language: GemmaConfig
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    external_size: tuple[int, int] = (210, 280)
    """(height, width) in pixels of the external image [paper]."""
    wrist_size: tuple[int, int] = (112, 112)
    """(height, width) of the wrist image [paper]; a missing camera drops its tokens (the paper is
    silent on it; zeros would be a picture of darkness)."""
    moge_layers: int = 4
    """The last n MoGe blocks whose features are concatenated [paper]."""
    moge_norm: bool = True
    """Pass them through MoGe's final norm, as its API returns them: unconfirmed."""
    siglip_table: Literal['size', 'scale'] = 'size'
    """How the SigLIP table is interpolated to other grids: 'size' is transformers' formula
    (bicubic to the grid's size), 'scale' is DINOv2's. What SPEAR-1 used is unconfirmed."""
    text_length: int = 32
    """Token budget of an instruction for static shapes: ours."""

    def __post_init__(self) -> None:
        for name in ('external_size', 'wrist_size'):
            size = getattr(self, name)
            if any(s <= 0 or s % self.siglip.patch for s in size):
                raise ValueError(
                    f'Spear1Config.{name}: {tuple(size)} must be positive multiples of the '
                    f'patch, {self.siglip.patch}.'
                )
        if self.siglip.patch != self.moge.patch:
            raise ValueError(
                f'Spear1Config.moge.patch: {self.moge.patch} must equal siglip.patch '
                f'{self.siglip.patch}: the features of both are averaged token by token.'
            )
        if not 1 <= self.moge_layers <= self.moge.layers:
            raise ValueError(
                f'Spear1Config.moge_layers: {self.moge_layers} must lie in 1..{self.moge.layers}.'
            )
        if self.siglip_table not in ('size', 'scale'):
            raise ValueError(f'Spear1Config.siglip_table: {self.siglip_table!r} is unknown.')

    @property
    def external_tokens(self) -> int:
        """Tokens of the external image."""
        return _grid_tokens(self.external_size, self.siglip.patch)

    @property
    def wrist_tokens(self) -> int:
        """Tokens of the wrist image."""
        return _grid_tokens(self.wrist_size, self.siglip.patch)

    @property
    def suffix_tokens(self) -> int:
        """One proprioceptive token and the horizon's action tokens."""
        return 1 + self.flow.horizon

    @staticmethod
    def names() -> tuple[str, ...]:
        """Names that :meth:`named` knows."""
        return tuple(_NAMED)

    @staticmethod
    def named(name: str, **changes: object) -> 'Spear1Config':
        """Return a size by name, with top-level fields replaced by ``changes``.

        Raises:
            ValueError: the name is unknown; the text names the closest.
        """
        if name not in _NAMED:
            near = difflib.get_close_matches(name, _NAMED, n=1, cutoff=0.0)
            raise ValueError(
                f'unknown model size {name!r}; did you mean {near[0]!r}? Known: {", ".join(_NAMED)}'
            )
        return dataclasses.replace(_NAMED[name](), **changes)  # type: ignore[arg-type]


def _positive(owner: str, name: str, value: int) -> None:
    if value <= 0:
        raise ValueError(f'{owner}.{name}: {value} must be a positive number.')


def _grid_tokens(size: tuple[int, int], patch: int) -> int:
    return (size[0] // patch) * (size[1] // patch)


def _full() -> Spear1Config:
    """3.55 B: SigLIP so400m/14, Gemma-2B, DINOv2 ViT-L/14 as in MoGe-1, expert 1024 x 18."""
    return Spear1Config(
        siglip=VitConfig(
            width=1152, layers=27, heads=16, mlp_width=4304, table_rows=16, table_columns=16
        ),
        moge=VitConfig(
            width=1024, layers=24, heads=16, mlp_width=4096, table_rows=37, table_columns=37
        ),
        language=GemmaConfig(
            vocab_size=257216 + 1024,
            width=2048,
            layers=18,
            heads=8,
            kv_heads=1,
            head_dim=256,
            mlp_width=16384,
        ),
    )


def _small() -> Spear1Config:
    """About 30 M: to be trained from scratch on simulated data with one GPU."""
    return Spear1Config(
        siglip=VitConfig(
            width=320, layers=8, heads=5, mlp_width=1280, table_rows=15, table_columns=20
        ),
        moge=VitConfig(
            width=192, layers=6, heads=3, mlp_width=768, table_rows=15, table_columns=20
        ),
        language=GemmaConfig(
            vocab_size=2624,
            width=384,
            layers=8,
            heads=6,
            kv_heads=1,
            head_dim=64,
            mlp_width=1024,
        ),
        expert=ExpertConfig(width=256, mlp_width=768),
    )


def _tiny() -> Spear1Config:
    """About 8 M: small enough to be bundled, meant for CPUs."""
    return Spear1Config(
        siglip=VitConfig(
            width=192, layers=6, heads=3, mlp_width=768, table_rows=12, table_columns=16
        ),
        moge=VitConfig(
            width=128, layers=4, heads=2, mlp_width=512, table_rows=12, table_columns=16
        ),
        language=GemmaConfig(
            vocab_size=2624,
            width=192,
            layers=6,
            heads=4,
            kv_heads=1,
            head_dim=48,
            mlp_width=512,
        ),
        expert=ExpertConfig(width=128, mlp_width=384),
        external_size=(168, 224),
    )


def _nano() -> Spear1Config:
    """About 3 M: trained from scratch in hours on two cores; it shares spear1_tiny's MoGe."""
    return Spear1Config(
        siglip=VitConfig(
            width=128, layers=4, heads=2, mlp_width=512, table_rows=6, table_columns=8
        ),
        moge=_tiny().moge,
        language=GemmaConfig(
            vocab_size=2624,
            width=128,
            layers=4,
            heads=4,
            kv_heads=1,
            head_dim=32,
            mlp_width=384,
        ),
        expert=ExpertConfig(width=96, mlp_width=256),
        external_size=(84, 112),
        wrist_size=(56, 56),
        text_length=24,
    )


def _debug() -> Spear1Config:
    """Smallest size with every part in it, for tests: some milliseconds per chunk on a CPU."""
    return Spear1Config(
        siglip=VitConfig(width=32, layers=2, heads=2, mlp_width=64, table_rows=4, table_columns=4),
        moge=VitConfig(width=16, layers=4, heads=2, mlp_width=32, table_rows=5, table_columns=5),
        language=GemmaConfig(
            vocab_size=2624,
            width=32,
            layers=2,
            heads=2,
            kv_heads=1,
            head_dim=16,
            mlp_width=64,
        ),
        expert=ExpertConfig(width=32, mlp_width=64),
        external_size=(84, 112),
        wrist_size=(56, 56),
    )


_NAMED: dict[str, Callable[[], Spear1Config]] = {
    'spear1': _full,
    'spear1_small': _small,
    'spear1_tiny': _tiny,
    'spear1_nano': _nano,
    'spear1_debug': _debug,
}
