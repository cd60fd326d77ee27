"""Named runs: functions that return a full config. Nothing here is read from files.

Numbers of the paper (arXiv 2511.17411) are marked; the rest is ours. Paper-size recipes were never
run here: what they were checked for is said in doc/training.md.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from spear_ros.checkpoints.spear1 import Sampling
from spear_ros.core.config import from_mapping, parse_value, to_mapping
from spear_ros.core.errors import UserError
from spear_ros.networks.config import ExpertConfig, FlowConfig, Spear1Config, VitConfig
from spear_ros.networks.moge_head import MogeConfig, MogeHeadConfig
from spear_ros.training.config import (
    GroundingConfig,
    LoggingConfig,
    LoraConfig,
    MogeDataConfig,
    MogeTrainConfig,
    OptimizerConfig,
    SavingConfig,
    TrainConfig,
    VlaConfig,
    VlaDataConfig,
)
from spear_ros.training.vlm_recipes import VLM_RECIPES, spear_vlm_ablation

FOLLOWED = Sampling(noise=0.0, execute_steps=3)
"""What served the bundled checkpoint best on validation scenes (its card); fine-tuning keeps it."""


def spear1_pretrain() -> VlaConfig:
    """SPEAR-1's pre-training: batch 2048, 300k steps, 24 data sets, 6 days on 32 H200 [paper]."""
    return VlaConfig(
        recipe='spear1_pretrain',
        model=Spear1Config.named('spear1'),
        steps=300_000,
        batch_size=2048,
        ema_decay=0.9999,
        recompute=True,
        optimizer=OptimizerConfig(
            learning_rate=5e-5, warmup_steps=2000, multipliers={'model.expert': 2.0}
        ),
        data=VlaDataConfig(mixture='oxe_spear_like_24', threads=8),
        saving=SavingConfig(every_steps=2000, keep=3),
        validate_every=20_000,
    )


def _posttrain(name: str, mixture: str) -> VlaConfig:
    start = spear1_pretrain()
    return replace(
        start,
        recipe=name,
        steps=50_000,
        batch_size=512,
        optimizer=replace(start.optimizer, learning_rate=2e-5, warmup_steps=500),
        data=replace(start.data, mixture=mixture, stats='init'),
        validate_every=5000,
    )


def spear1_posttrain_bridge() -> VlaConfig:
    """50k steps [paper] on Bridge V2 from the pre-trained weights; give init=FOLDER."""
    return _posttrain('spear1_posttrain_bridge', 'bridge')


def spear1_posttrain_droid() -> VlaConfig:
    """50k steps [paper] on DROID from the pre-trained weights; give init=FOLDER."""
    return _posttrain('spear1_posttrain_droid', 'droid')


def spear1_finetune_24gb() -> VlaConfig:
    """Your own recordings on one 24 GB card: the expert and the projectors learn, the rest is
    frozen in bfloat16; lora.rank=16 adds updates of language stack and SigLIP."""
    return VlaConfig(
        recipe='spear1_finetune_24gb',
        model=Spear1Config.named('spear1'),
        steps=10_000,
        batch_size=32,
        accumulate=4,
        ema_decay=0.999,
        recompute=True,
        frozen_dtype='bfloat16',
        train=('expert', 'projector'),
        tau_per_sample=4,
        lora=LoraConfig(rank=0, alpha=16.0),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=200),
        data=VlaDataConfig(stats='init', threads=4),
        saving=SavingConfig(every_steps=1000, keep=2),
        validate_every=2000,
    )


def spear1_debug() -> VlaConfig:
    """The smallest model and a few steps, to see that everything runs."""
    return VlaConfig(
        recipe='spear1_debug',
        model=Spear1Config.named('spear1_debug'),
        steps=20,
        batch_size=8,
        ema_decay=0.9,
        precision='float32',
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2),
        data=VlaDataConfig(external_size=(84, 112), wrist_size=(56, 56), threads=1),
        saving=SavingConfig(every_steps=10),
        logging=LoggingConfig(every_steps=1, tensorboard=False),
    )


OBJECT_WORDS = (
    *('red', 'green', 'blue', 'yellow', 'orange', 'purple'),
    *('cube', 'block', 'cylinder', 'ball', 'plate', 'bowl', 'tray'),
)
"""Of the simulator's catalogue (a test compares them)."""


def spear_tiny() -> VlaConfig:
    """The bundled checkpoint: one small SPEAR-1 for both simulated robots.

    data.shards = the folders of ``spear demonstrations`` for both, moge = the folder of moge_tiny.
    Eight flow times a sample: the suffix is 6 of 280 tokens, so they cost next to nothing.
    """
    return VlaConfig(
        recipe='spear_tiny',
        model=replace(
            Spear1Config.named('spear1_tiny'),
            flow=FlowConfig(rotation_loss='cos+geo'),
            text_length=32,
        ),
        steps=20_000,
        batch_size=288,
        ema_decay=0.9995,
        tau_per_sample=8,
        export_dtype='bfloat16',
        optimizer=OptimizerConfig(
            learning_rate=6e-4, warmup_steps=1000, final_ratio=0.02, weight_decay=0.05
        ),
        data=VlaDataConfig(
            external_size=(168, 224),
            wrist_size=(112, 112),
            resident=True,
            threads=8,
            jitter=0.2,
            hide_wrist=0.05,
            per_picture=3,
        ),
        grounding=GroundingConfig(
            patch_weight=0.5, point_weight=0.5, place_weight=5.0, layers=2, words=OBJECT_WORDS
        ),
        saving=SavingConfig(every_steps=1000),
        logging=LoggingConfig(every_steps=50),
        validate_every=5000,
    )


def spear_tiny_finetune() -> VlaConfig:
    """Your own recordings on the bundled checkpoint, on a CPU or any card; give init=FOLDER.

    The parts and switches of spear1_finetune_24gb at the size of models/spear_tiny, which is that
    of spear_tiny_cpu. After spear_tiny, change model and data.
    """
    full, tiny = spear1_finetune_24gb(), spear_tiny_cpu()
    return replace(
        full,
        recipe='spear_tiny_finetune',
        model=tiny.model,
        sampling=FOLLOWED,
        steps=2000,
        batch_size=64,
        accumulate=1,
        recompute=False,
        precision=tiny.precision,
        frozen_dtype='float32',
        export_dtype='bfloat16',
        optimizer=replace(full.optimizer, learning_rate=3e-4, warmup_steps=100),
        data=replace(tiny.data, stats='init', threads=2, per_picture=1),
        saving=SavingConfig(every_steps=200, keep=2),
        logging=LoggingConfig(every_steps=20),
        validate_every=500,
    )


def spear_ablation() -> VlaConfig:
    """One arm of benchmarks/vla_ablation.py: some CPU minutes; depth encoder of moge_tiny.

    Vision and language are those of spear_vlm_ablation, so that its export can be the start.
    """
    start = spear_tiny_cpu()
    nano = Spear1Config.named('spear1_nano')
    model = replace(
        spear_vlm_ablation().model,
        expert=ExpertConfig(width=96, mlp_width=256),
        flow=start.model.flow,
        external_size=nano.external_size,
        wrist_size=nano.wrist_size,
    )
    return replace(
        start,
        recipe='spear_ablation',
        model=model,
        steps=1000,
        batch_size=48,
        ema_decay=0.99,
        optimizer=replace(start.optimizer, learning_rate=1.5e-3, warmup_steps=50),
        data=replace(
            start.data,
            external_size=nano.external_size,
            wrist_size=nano.wrist_size,
            per_picture=3,
        ),
        saving=SavingConfig(every_steps=200, keep=1),
        logging=LoggingConfig(every_steps=50, tensorboard=False),
        validate_every=0,
    )


def moge_tiny() -> MogeTrainConfig:
    """The depth encoder of all small models, on exact depth of the simulator.

    data.scenes = folders of ``spear depth-scenes``. The encoder is spear1_tiny's.
    """
    return MogeTrainConfig(
        recipe='moge_tiny',
        model=MogeConfig(
            encoder=Spear1Config.named('spear1_tiny').moge,
            head=MogeHeadConfig(
                projected=64,
                upsampled=(64, 32),
                residual_blocks=1,
                residual_factor=1,
                last_channels=32,
            ),
            num_tokens_range=(192, 192),
        ),
        image_size=(168, 224),
        data=MogeDataConfig(threads=8),
        steps=10_000,
        batch_size=64,
        ema_decay=0.999,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=500, final_ratio=0.02),
        saving=SavingConfig(every_steps=1000),
        logging=LoggingConfig(every_steps=50),
        validate_every=5000,
    )


def spear_tiny_cpu() -> VlaConfig:
    """spear_tiny for 80 minutes on two cores: 3.9 M parameters, small pictures, float32 (CPUs
    without bfloat16 arithmetic emulate it slowly), five instructions a picture."""
    start = spear_tiny()
    model = Spear1Config.named(
        'spear1_nano',
        external_size=(112, 140),
        wrist_size=(84, 84),
        expert=ExpertConfig(width=128, mlp_width=512),
        flow=FlowConfig(rotation_loss='cos+geo'),
    )
    return replace(
        start,
        recipe='spear_tiny_cpu',
        model=model,
        steps=7200,
        batch_size=60,
        ema_decay=0.998,
        tau_per_sample=4,
        sampling=FOLLOWED,
        precision='float32',
        optimizer=replace(
            start.optimizer, learning_rate=1.2e-3, warmup_steps=200, weight_decay=0.02
        ),
        data=replace(
            start.data,
            external_size=model.external_size,
            wrist_size=model.wrist_size,
            threads=2,
            per_picture=5,
        ),
        saving=SavingConfig(every_steps=400),
        validate_every=800,
    )


def moge_tiny_cpu() -> MogeTrainConfig:
    """moge_tiny for half an hour on one core: pictures of half the size, a narrow head.

    The same encoder, so that it serves every small model; 16 to 80 tokens are what those use.
    """
    start = moge_tiny()
    head = replace(start.model.head, projected=32, upsampled=(32, 32), last_channels=16)
    return replace(
        start,
        recipe='moge_tiny_cpu',
        model=replace(start.model, head=head, num_tokens_range=(40, 80)),
        image_size=(84, 112),
        data=MogeDataConfig(threads=1),
        steps=700,
        batch_size=24,
        ema_decay=0.99,
        precision='float32',
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=100, final_ratio=0.02),
        saving=SavingConfig(every_steps=350),
        validate_every=350,
    )


def moge_debug() -> MogeTrainConfig:
    """moge_tiny's parts at the smallest size, for tests."""
    tiny = moge_tiny()
    encoder = VitConfig(width=32, layers=4, heads=2, mlp_width=64, table_rows=6, table_columns=8)
    head = replace(tiny.model.head, projected=32, upsampled=(32, 32))
    return replace(
        tiny,
        recipe='moge_debug',
        model=replace(tiny.model, encoder=encoder, head=head, num_tokens_range=(48, 48)),
        image_size=(84, 112),
        steps=20,
        batch_size=4,
        ema_decay=0.9,
        precision='float32',
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=2),
        logging=LoggingConfig(every_steps=1, tensorboard=False),
        validate_every=0,
    )


RECIPES: dict[str, dict[str, Callable[[], TrainConfig]]] = {
    'vla': {
        f.__name__: f
        for f in (
            spear1_pretrain,
            spear1_posttrain_bridge,
            spear1_posttrain_droid,
            spear1_finetune_24gb,
            spear1_debug,
            spear_tiny,
            spear_tiny_finetune,
            spear_ablation,
            spear_tiny_cpu,
        )
    },
    'vlm': VLM_RECIPES,
    'moge': {f.__name__: f for f in (moge_tiny, moge_tiny_cpu, moge_debug)},
}
"""Kind of model -> name -> recipe."""


def find_recipe(kind: str, name: str) -> TrainConfig:
    """The config of a recipe.

    Raises:
        UserError: unknown; names the closest.
    """
    known = RECIPES[kind]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f'known: {", ".join(known)}.'
        raise UserError(f'recipe "{name}" is unknown for {kind}; {hint}')
    return known[name]()


def change(config: TrainConfig, assignments: list[str]) -> TrainConfig:
    """Apply ``key=value`` texts; dotted keys reach nested fields, values are YAML.

    Raises:
        UserError: not of that form, an unknown key, a wrong value; one sentence.
    """
    data = to_mapping(config)
    for text in assignments:
        key, sign, value = text.partition('=')
        if not sign or not key:
            raise UserError(f'"{text}" is not of the form key=value, such as batch_size=64.')
        _assign(data, key, parse_value(value, key) if value else '')
    try:
        return from_mapping(type(config), data, 'settings')
    except UserError:
        raise
    except ValueError as error:  # the networks' configs know no UserError
        raise UserError(f'settings: model: {error}') from None


def _assign(data: dict[str, Any], key: str, value: object) -> None:
    *outer, last = key.split('.')
    place: Any = data
    for depth, part in enumerate(outer):
        if not isinstance(place, Mapping) or part not in place:
            _unknown('.'.join(outer[: depth + 1]), place, part)
        place = place[part]
    if outer and outer[-1] == 'multipliers':
        place[last] = value
    elif not isinstance(place, dict) or last not in place:
        _unknown(key, place, last)
    elif isinstance(place[last], list) and not isinstance(value, list):
        place[last] = [value]  # one folder needs no brackets
    elif isinstance(place[last], str) and isinstance(value, (int, float)):
        place[last] = str(value)
    elif isinstance(place[last], float) and isinstance(value, str):
        place[last] = _number(key, value)
    else:
        place[last] = value


def _number(key: str, value: str) -> float:
    """YAML 1.1 reads 1e-4 as text."""
    try:
        return float(value)
    except ValueError:
        raise UserError(f'{key}: {value!r} is no number.') from None


def _unknown(key: str, place: Any, part: str) -> None:
    known = list(place) if isinstance(place, Mapping) else []
    near = difflib.get_close_matches(part, known, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f'known: {", ".join(known) or "nothing"}.'
    raise UserError(f'settings: unknown key "{key}"; {hint}')
