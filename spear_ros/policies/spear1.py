"""Policy ``spear1``: the SPEAR-1 network on one robot.

Observation to model units, engine, model units to absolute targets on the pose measured at t_obs.
All conventions (frames, reference rotation, statistics, image fit) come from the checkpoint.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from spear_ros.checkpoints.spear1 import LoadedCheckpoint, Sampling, load_checkpoint
from spear_ros.core.config import from_mapping, load_yaml, to_mapping
from spear_ros.core.errors import UserError
from spear_ros.core.resources import share_file
from spear_ros.core.types import (
    EXTERNAL,
    WRIST,
    ActionChunk,
    ActionSpec,
    FloatArray,
    NormStats,
    Observation,
)
from spear_ros.inference.denoiser import refuse_on_failure
from spear_ros.inference.engine import (
    Engine,
    EngineRequest,
    EngineSettings,
    StageTimes,
    check_device,
    chunk_noise,
)
from spear_ros.networks.spear1 import Spear1, Spear1Config
from spear_ros.policies.base import ChunkPrefix, PolicyInfo, make_chunk
from spear_ros.processing.action_space import (
    Pose,
    decode_actions,
    encode_actions,
    encode_proprio,
    pose_of,
    targets_from_poses,
)
from spear_ros.processing.embodiments import (
    check_action_spec,
    default_action_specs,
    default_norm_stats,
)
from spear_ros.processing.normalization import check_norm_stats
from spear_ros.processing.small_tokenizer import build_small_tokenizer
from spear_ros.processing.tokens import TextTokenizer, TextTokens
from spear_ros.robots.spec import RobotSpec

NAME = 'spear1'
CONFIG_FILE = 'config/policies/spear1.yaml'
BUNDLED = 'models/spear_tiny'

# Of the weights that are drawn when there is no checkpoint; the chunks' noise has its own seed.
UNTRAINED_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Spear1Options:
    """``config/policies/spear1.yaml``."""

    untrained: str = ''
    """Size of a network with random weights, in place of a checkpoint: ``spear1_debug``."""
    dtype: Literal['auto', 'stored', 'float32', 'bfloat16'] = 'auto'
    """Type of the weights; ``auto`` is float32 on a CPU and bfloat16 on CUDA."""
    steps: int = 0
    """Euler steps of the flow; 0 = the checkpoint's own."""
    noise: float = -1.0
    """Spread of the noise that a chunk begins with, 0 to 1; -1 = the checkpoint's own."""
    execute_steps: int = 0
    """Knots of a chunk that are followed before the next is computed; 0 = the checkpoint's own."""
    capture_graph: bool = True
    """Record CUDA graphs."""
    allow_eager: bool = False
    """Run several times slower, with a warning, where graphs cannot be recorded; else refuse."""
    kernels: Literal['auto', 'triton', 'torch'] = 'auto'
    """``auto`` is Triton on GPUs that can run it."""
    external_camera: tuple[int, int] = (480, 640)
    """Rows and columns of the pictures that graphs are recorded for at activation."""
    wrist_camera: tuple[int, int] = (480, 640)
    wrist: bool = True
    """Use the wrist camera where there is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """What a policy is made of, whether loaded or drawn."""

    model: Spear1 | None
    spec: ActionSpec
    stats: NormStats
    tokenizer: TextTokenizer
    settings: EngineSettings
    checkpoint_id: str
    trained: bool
    recipe: str
    sampling: Sampling = field(default_factory=Sampling)


def create(
    *,
    robot: RobotSpec,
    checkpoint: Path | None,
    seed: int,
    device: str,
    options: Mapping[str, object],
) -> 'Spear1Policy':
    """Load the checkpoint (the bundled one where none is given) and put it on the device.

    Raises:
        UserError: unusable checkpoint, option or device; or nothing to load.
    """
    chosen = read_options(options)
    place = check_device(device)
    if checkpoint is not None and chosen.untrained:
        raise UserError(
            f'checkpoint {checkpoint} and untrained "{chosen.untrained}" exclude each other; give '
            'one of them.'
        )
    settings = EngineSettings(
        steps=chosen.steps,
        capture_graph=chosen.capture_graph,
        allow_eager=chosen.allow_eager,
        kernels=chosen.kernels,
        external_camera=chosen.external_camera,
        wrist_camera=chosen.wrist_camera,
    )
    if chosen.untrained:
        parts = _draw(chosen.untrained, robot, settings)
    else:
        folder = checkpoint if checkpoint is not None else _bundled()
        with refuse_on_failure(f'loading {folder} to {place}'):
            loaded = load_checkpoint(folder, place, _dtype(chosen.dtype, place))
        parts = _check(loaded, folder, robot, settings)
    parts = replace(parts, sampling=_sampling(parts, chosen))
    return Spear1Policy(parts, seed=seed, device=place, options=chosen)


def read_options(options: Mapping[str, object]) -> Spear1Options:
    """Lay ``options`` over the installed YAML file.

    Raises:
        UserError: an unknown key or a wrong value.
    """
    defaults = to_mapping(load_yaml(share_file(CONFIG_FILE), Spear1Options))
    return from_mapping(Spear1Options, {**defaults, **options}, where=f'policy {NAME}')


class Spear1Policy:
    """See the module's docstring; made by :func:`create`."""

    def __init__(
        self, parts: _Parts, *, seed: int, device: torch.device, options: Spear1Options
    ) -> None:
        self._seed = seed
        self._use_wrist = options.wrist
        details = _details(parts, device)
        self._engine = Engine(parts.model, device, parts.settings, consume=True)
        details['graphs'] = 'captured' if self._engine.captures else 'none'
        self._parts = replace(parts, model=None)  # the engine has fused and emptied it
        self._info = _describe(parts, options.wrist, details)
        self._text: tuple[str, TextTokens] | None = None
        self.last_times: StageTimes | None = None
        """Stages of the newest chunk, for benchmarks and status."""

    def describe(self) -> PolicyInfo:
        """Return the constant facts about this policy."""
        return self._info

    def warm_up(self) -> None:
        """Record every graph (CUDA), or run once (CPU)."""
        self._engine.warm_up(wrist=self._use_wrist)
        graphs = 'captured' if self._engine.captures else 'none'
        self._info = replace(self._info, details={**self._info.details, 'graphs': graphs})

    @property
    def warnings(self) -> tuple[str, ...]:
        """What runs slower than it could, one sentence each; shown in the status."""
        return tuple(self._engine.warnings)

    def reset(self) -> None:
        """Forget the episode's instruction; nothing else is remembered."""
        self._text = None

    def infer(self, observation: Observation, prefix: ChunkPrefix | None = None) -> ActionChunk:
        """Compute the chunk of one observation; see :class:`spear_ros.policies.base.Policy`.

        Raises:
            UserError: another embodiment, no external picture, an instruction that cannot be read.
        """
        spec, stats = self._parts.spec, self._parts.stats
        if observation.embodiment != spec.embodiment:
            raise UserError(
                f'embodiment of the observation is "{observation.embodiment}" and the policy was '
                f'loaded for "{spec.embodiment}"; load it for this robot.'
            )
        if EXTERNAL not in observation.images:
            raise UserError('the external camera has no picture; check its topic and driver.')
        wrist = observation.images.get(WRIST) if self._use_wrist else None
        anchor = pose_of(observation.state)
        result = self._engine.compute(
            EngineRequest(
                external=observation.images[EXTERNAL].image,
                wrist=None if wrist is None else wrist.image,
                text=self._tokens(observation.instruction),
                proprio=self._proprio(observation, anchor),
                noise=chunk_noise(
                    self._engine.config,
                    self._seed,
                    observation.t_obs_ns,
                    self._parts.sampling.noise,
                ),
                committed=self._committed(prefix, anchor),
            )
        )
        self.last_times = result.times
        targets = decode_actions(result.actions, anchor, spec, stats)
        return make_chunk(observation, spec, anchor, targets, self._parts.checkpoint_id)

    def check_instruction(self, text: str) -> None:
        """Refuse an instruction with more tokens than the model reads; raises UserError."""
        self._parts.tokenizer.instruction(text, self._engine.buckets)

    def close(self) -> None:
        """Release memory and device."""
        self._engine.close()

    def _proprio(self, observation: Observation, anchor: Pose) -> FloatArray:
        opening = np.asarray(observation.state.gripper, dtype=float)
        return encode_proprio(anchor, opening, self._parts.spec, self._parts.stats)

    def _committed(self, prefix: ChunkPrefix | None, anchor: Pose) -> FloatArray | None:
        if prefix is None:
            return None
        targets = targets_from_poses(prefix.T_base_ee, prefix.gripper)
        return encode_actions(targets, anchor, self._parts.spec, self._parts.stats)

    def _tokens(self, instruction: str) -> TextTokens:
        if self._text is None or self._text[0] != instruction:
            tokens = self._parts.tokenizer.instruction(instruction, self._engine.buckets)
            self._text = (instruction, tokens)
        return self._text[1]


def _check(
    loaded: LoadedCheckpoint, folder: Path, robot: RobotSpec, settings: EngineSettings
) -> _Parts:
    """Hold what was loaded against the robot and against itself."""
    check_norm_stats(loaded.stats)
    for spec in loaded.specs.values():
        check_action_spec(spec)
    if robot.embodiment not in loaded.specs:
        raise UserError(
            f'{folder}: no embodiment "{robot.embodiment}" for robot {robot.name} (it has '
            f'{", ".join(loaded.specs)}); give a checkpoint that was trained on this robot.'
        )
    tokenizer = TextTokenizer(loaded.tokenizer_path)
    _check_vocabulary(tokenizer, loaded.config.model, folder)
    return _Parts(
        model=loaded.model,
        spec=loaded.specs[robot.embodiment],
        stats=loaded.stats,
        tokenizer=tokenizer,
        settings=replace(settings, image_fit=loaded.config.image_fit),
        checkpoint_id=loaded.checkpoint_id,
        trained=loaded.config.trained,
        recipe=loaded.config.recipe,
        sampling=loaded.config.sampling,
    )


def _sampling(parts: _Parts, chosen: Spear1Options) -> Sampling:
    """What the options leave open is the checkpoint's."""
    sampling = parts.sampling
    if chosen.noise != -1.0:
        sampling = replace(sampling, noise=chosen.noise)
    if chosen.execute_steps != 0:
        sampling = replace(sampling, execute_steps=chosen.execute_steps)
    most = parts.spec.horizon - 1
    if sampling.execute_steps > most:
        raise UserError(
            f'execute_steps = {sampling.execute_steps}: a chunk has {parts.spec.horizon} knots and '
            f'the last one is there for the time that the next chunk takes; give at most {most}.'
        )
    return sampling


def _draw(size: str, robot: RobotSpec, settings: EngineSettings) -> _Parts:
    """Random weights of a named size: shows that everything runs, not what was learnt."""
    try:
        config = Spear1Config.named(size)
    except ValueError as error:
        raise UserError(f'untrained: {error}.') from None
    specs = default_action_specs()
    if robot.embodiment not in specs:
        raise UserError(
            f'robot {robot.name}: embodiment "{robot.embodiment}" has no default ActionSpec; give '
            'a checkpoint that was trained on it.'
        )
    # The global generator belongs to whoever called us.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        model = Spear1(config)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = TextTokenizer(build_small_tokenizer(Path(folder) / 'tokenizer.json'))
    _check_vocabulary(tokenizer, config, f'untrained "{size}"')
    return _Parts(
        model=model,
        spec=replace(specs[robot.embodiment], horizon=config.flow.horizon),
        stats=default_norm_stats(),
        tokenizer=tokenizer,
        settings=settings,
        checkpoint_id=f'untrained-{size}',
        trained=False,
        recipe='random weights',
    )


def _check_vocabulary(tokenizer: TextTokenizer, config: Spear1Config, where: object) -> None:
    if tokenizer.n_rows > config.language.vocab_size:
        raise UserError(
            f'{where}: the tokenizer has {tokenizer.n_rows} ids and the embedding '
            f'{config.language.vocab_size} rows; give the tokenizer that belongs to the weights.'
        )


def _details(parts: _Parts, device: torch.device) -> dict[str, str]:
    assert parts.model is not None
    weight = next(parts.model.parameters())
    return {
        'parameters': f'{sum(p.numel() for p in parts.model.parameters()) / 1e6:.1f} M',
        'dtype': str(weight.dtype).removeprefix('torch.'),
        'device': str(device),
        'noise': f'{parts.sampling.noise:g}',
        'execute_steps': str(parts.sampling.execute_steps),
        'steps': str(parts.settings.steps or parts.model.config.flow.steps),
        'image_fit': parts.settings.image_fit,
        'recipe': parts.recipe,
    }


def _describe(parts: _Parts, wrist: bool, details: dict[str, str]) -> PolicyInfo:
    return PolicyInfo(
        name=NAME,
        checkpoint_id=parts.checkpoint_id,
        spec=parts.spec,
        cameras=(EXTERNAL, WRIST) if wrist else (EXTERNAL,),
        trained=parts.trained,
        execute_steps=parts.sampling.execute_steps,
        details=details,
    )


def _bundled() -> Path:
    try:
        folder = share_file(BUNDLED)
        present = (folder / 'config.json').is_file()
    except UserError:
        present = False
    if not present:
        raise UserError(
            'policy spear1 needs a checkpoint and none is bundled; give a checkpoint folder, or '
            'untrained: spear1_debug to try the system with random weights.'
        )
    return folder


def _dtype(name: str, device: torch.device) -> torch.dtype | None:
    if name == 'auto':
        return torch.float32 if device.type == 'cpu' else torch.bfloat16
    return {'stored': None, 'float32': torch.float32, 'bfloat16': torch.bfloat16}[name]
