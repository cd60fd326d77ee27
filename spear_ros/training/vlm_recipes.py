"""Named runs of SPEAR-VLM, see :mod:`spear_ros.training.recipes`."""

from collections.abc import Callable
from dataclasses import replace

from spear_ros.networks.config import ExpertConfig, GemmaConfig, Spear1Config, VitConfig
from spear_ros.training.config import (
    LoggingConfig,
    OptimizerConfig,
    SavingConfig,
    TrainConfig,
    VlmConfig,
    VlmDataConfig,
)


def spear_vlm_phase1() -> VlmConfig:
    """Phase 1 of SPEAR-VLM: 2k steps, batch 512 [paper]; init = the converted PaliGemma + MoGe."""
    return VlmConfig(
        recipe='spear_vlm_phase1',
        model=Spear1Config.named('spear1'),
        phase=1,
        steps=2000,
        batch_size=512,
        ema_decay=0.999,
        recompute=True,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, weight_decay=0.0),
        data=VlmDataConfig(text_length=128, threads=8),
        saving=SavingConfig(every_steps=500),
    )


def spear_vlm_phase2() -> VlmConfig:
    """Phase 2 of SPEAR-VLM: 10k steps, batch 512, 3-D tokens twice [paper]; init = phase 1."""
    return replace(
        spear_vlm_phase1(),
        recipe='spear_vlm_phase2',
        phase=2,
        steps=10_000,
        optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=300),
        validate_every=2000,
    )


def spear_vlm_small_phase1() -> VlmConfig:
    """Phase 1 at the size of spear_tiny; moge = the folder of moge_tiny."""
    return VlmConfig(
        recipe='spear_vlm_small_phase1',
        model=Spear1Config.named('spear1_tiny'),
        phase=1,
        steps=500,
        batch_size=64,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=50, weight_decay=0.0),
        data=VlmDataConfig(text_length=64),
        logging=LoggingConfig(every_steps=50),
    )


def spear_vlm_small_phase2() -> VlmConfig:
    """Phase 2 at the size of spear_tiny; init = phase 1. MoGe stays frozen: with so little data a
    trained depth encoder forgets depth, and the VLA stage shares it."""
    return replace(
        spear_vlm_small_phase1(),
        recipe='spear_vlm_small_phase2',
        phase=2,
        steps=10_000,
        train=('vlm.siglip', 'vlm.language', 'projector'),
        optimizer=OptimizerConfig(learning_rate=6e-4, warmup_steps=300, final_ratio=0.02),
        validate_every=2500,
    )


def spear_vlm_ablation() -> VlmConfig:
    """One arm of benchmarks/vlm_ablation.py: some CPU minutes, one phase, spear1_tiny's MoGe.

    moge = the folder of moge_tiny, tokenizer = the one that the benchmark makes.
    """
    model = Spear1Config(
        siglip=VitConfig(
            width=96, layers=3, heads=3, mlp_width=288, table_rows=8, table_columns=10
        ),
        moge=Spear1Config.named('spear1_tiny').moge,
        language=GemmaConfig(
            vocab_size=2624, width=96, layers=4, heads=3, kv_heads=1, head_dim=32, mlp_width=256
        ),
        expert=ExpertConfig(width=32, mlp_width=64),
        external_size=(112, 140),
    )
    return replace(
        spear_vlm_small_phase2(),
        recipe='spear_vlm_ablation',
        model=model,
        steps=1000,
        batch_size=32,
        precision='float32',
        ema_decay=0.99,
        number_spread=12.0,
        export_dtype='bfloat16',
        optimizer=OptimizerConfig(
            learning_rate=2e-3, warmup_steps=50, final_ratio=0.02, weight_decay=0.05
        ),
        data=VlmDataConfig(text_length=80, by_picture=True, threads=1),
        saving=SavingConfig(every_steps=100, keep=1),
        logging=LoggingConfig(every_steps=50, tensorboard=False),
        validate_every=0,
    )


def spear_vlm_debug() -> VlmConfig:
    """The smallest model, for tests."""
    return replace(
        spear_vlm_small_phase2(),
        recipe='spear_vlm_debug',
        model=Spear1Config.named('spear1_debug'),
        steps=20,
        batch_size=4,
        ema_decay=0.9,
        precision='float32',
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2),
        logging=LoggingConfig(every_steps=1, tensorboard=False),
        validate_every=0,
    )


VLM_RECIPES: dict[str, Callable[[], TrainConfig]] = {
    f.__name__: f
    for f in (
        spear_vlm_phase1,
        spear_vlm_phase2,
        spear_vlm_small_phase1,
        spear_vlm_small_phase2,
        spear_vlm_ablation,
        spear_vlm_debug,
    )
}
"""Name -> recipe."""
