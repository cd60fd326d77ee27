"""Policy ``spear1``: conventions of the checkpoint, one sentence for what is missing."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='policy spear1 needs torch')

from safetensors.torch import load_file  # noqa: E402

from spear_ros.checkpoints.spear1 import CheckpointContents, Sampling, save_checkpoint  # noqa: E402
from spear_ros.core.errors import UserError  # noqa: E402
from spear_ros.core.geometry import pose, quat_angle  # noqa: E402
from spear_ros.networks.spear1 import Spear1, Spear1Config  # noqa: E402
from spear_ros.policies.base import ChunkPrefix  # noqa: E402
from spear_ros.policies.registry import create_policy  # noqa: E402
from spear_ros.processing.embodiments import (  # noqa: E402
    default_action_specs,
    default_norm_stats,
    spec_mismatch,
)
from spear_ros.processing.small_tokenizer import build_small_tokenizer  # noqa: E402
from spear_ros.robots.examples import make_example_observation  # noqa: E402
from spear_ros.robots.registry import get_robot  # noqa: E402

CONFIG = Spear1Config.named('spear1_debug')
UNTRAINED = {'untrained': 'spear1_debug'}


def contents(base, **changes):
    fields = {
        'model': CONFIG,
        'specs': default_action_specs(),
        'stats': default_norm_stats(),
        'tokenizer': base / 'tokenizer.json',
        'trained': True,
        'recipe': 'policy test',
    }
    return CheckpointContents(**(fields | changes))


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp('policy')
    build_small_tokenizer(base / 'tokenizer.json')
    torch.manual_seed(0)
    save_checkpoint(base / 'good', contents(base), Spear1(CONFIG).state_dict())
    return base


def make(robot='fr3', **arguments):
    return create_policy('spear1', robot=get_robot(robot), **arguments)


def assert_same(a, b):
    for field in ('p_base_ee', 'q_base_ee', 'gripper'):
        assert getattr(a, field).tobytes() == getattr(b, field).tobytes()


def test_a_checkpoint_is_described_and_gives_chunks_with_its_id(base):
    policy = make(checkpoint=base / 'good')
    info = policy.describe()
    assert info.trained
    assert len(info.checkpoint_id) == 12
    assert info.cameras == ('external', 'wrist')
    assert info.details['recipe'] == 'policy test'
    assert spec_mismatch(info.spec, get_robot('fr3')) == ''
    chunk = policy.infer(make_example_observation('fr3'))
    assert chunk.checkpoint_id == info.checkpoint_id
    assert policy.last_times.total_ms > 0


@pytest.mark.parametrize('robot', ['fr3', 'wx250s'])
def test_random_weights_say_that_they_are_untrained(robot):
    policy = make(robot, options=UNTRAINED)
    info = policy.describe()
    assert not info.trained
    assert info.checkpoint_id == 'untrained-spear1_debug'
    assert spec_mismatch(info.spec, get_robot(robot)) == ''


def test_drawing_weights_leaves_the_callers_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make(options=UNTRAINED)
    assert torch.equal(torch.rand(3), expected)


def test_seed_and_time_decide_the_noise_and_nothing_else_does():
    o = make_example_observation('fr3')
    a, b = make(options=UNTRAINED), make(options=UNTRAINED)
    b.warm_up()
    b.infer(replace(o, t_obs_ns=o.t_obs_ns + 1))
    assert_same(a.infer(o), b.infer(o))
    other = make(options=UNTRAINED, seed=1).infer(o)
    assert not np.array_equal(other.p_base_ee, a.infer(o).p_base_ee)


def test_without_spread_every_chunk_of_a_view_is_the_same():
    o = make_example_observation('fr3')
    policy = make(options={**UNTRAINED, 'noise': 0.0}, seed=3)
    chunk = policy.infer(o)
    assert_same(chunk, policy.infer(replace(o, t_obs_ns=o.t_obs_ns + 1)))
    assert_same(chunk, make(options={**UNTRAINED, 'noise': 0.0}, seed=4).infer(o))
    assert not np.array_equal(chunk.p_base_ee, make(options=UNTRAINED).infer(o).p_base_ee)


def test_how_chunks_are_drawn_is_the_checkpoints_unless_the_options_say(base):
    sampling = Sampling(noise=0.25, execute_steps=3)
    if not (base / 'sampled').exists():
        state = Spear1(CONFIG).state_dict()
        save_checkpoint(base / 'sampled', contents(base, sampling=sampling), state)
    info = make(checkpoint=base / 'sampled').describe()
    assert (info.execute_steps, info.details['noise']) == (3, '0.25')
    options = {'noise': 1.0, 'execute_steps': 2}
    info = make(checkpoint=base / 'sampled', options=options).describe()
    assert (info.execute_steps, info.details['noise']) == (2, '1')
    assert make(checkpoint=base / 'good').describe().execute_steps == 1


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'execute_steps': 5}, 'execute_steps = 5: a chunk has 5 knots .* give at most 4'),
        ({'execute_steps': -1}, 'execute_steps = -1 must be at least 1'),
        ({'noise': 1.5}, 'noise = 1.5 must lie between 0 and 1'),
    ],
)
def test_a_way_to_draw_that_there_is_not_is_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        make(options={**UNTRAINED, **options})


def test_the_chunk_hangs_on_the_measured_pose():
    # With proprioception held away from the network's eyes the same actions would come out; here
    # it is enough that the anchor is the measured pose and the targets are near it.
    o = make_example_observation('wx250s')
    policy = make('wx250s', options=UNTRAINED)
    chunk = policy.infer(o)
    np.testing.assert_allclose(pose(chunk.anchor_p, chunk.anchor_q), o.state.T_base_ee, atol=1e-9)
    assert np.linalg.norm(chunk.p_base_ee - chunk.anchor_p, axis=1).max() < 2.0


def test_camera_instruction_and_gripper_reach_the_network():
    o = make_example_observation('fr3')
    policy = make(options=UNTRAINED)
    base = policy.infer(o).p_base_ee
    no_wrist = replace(o, images={'external': o.images['external']})
    dark = replace(o.images['external'], image=np.zeros((480, 640, 3), np.uint8))
    for changed in (
        no_wrist,
        replace(o, images={**o.images, 'external': dark}),
        replace(o, instruction='open the drawer'),
        replace(o, state=replace(o.state, gripper=0.0)),
    ):
        assert np.abs(policy.infer(changed).p_base_ee - base).max() > 1e-6


def test_without_the_wrist_option_its_picture_is_not_looked_at():
    o = make_example_observation('fr3')
    policy = make(options={**UNTRAINED, 'wrist': False})
    assert policy.describe().cameras == ('external',)
    assert_same(
        policy.infer(o), policy.infer(replace(o, images={'external': o.images['external']}))
    )


def test_a_committed_prefix_is_kept_and_the_rest_still_computed():
    o = make_example_observation('fr3')
    policy = make(options=UNTRAINED)
    T = o.state.T_base_ee @ pose([0.01, 0.0, 0.0], [1, 0, 0, 0])
    chunk = policy.infer(o, ChunkPrefix(T_base_ee=T[None], gripper=np.ones(1)))
    np.testing.assert_allclose(chunk.p_base_ee[0], T[:3, 3], atol=1e-6)
    assert quat_angle(chunk.q_base_ee[0], chunk.anchor_q) < 1e-3
    free = policy.infer(o)
    assert not np.allclose(chunk.p_base_ee[1:], free.p_base_ee[1:])


def test_what_the_observation_lacks_is_one_sentence():
    o = make_example_observation('fr3')
    policy = make(options=UNTRAINED)
    with pytest.raises(UserError, match='external camera'):
        policy.infer(replace(o, images={}))
    with pytest.raises(UserError, match='loaded for "franka_droid"'):
        policy.infer(make_example_observation('wx250s'))
    with pytest.raises(UserError, match='empty'):
        policy.infer(replace(o, instruction='  '))
    with pytest.raises(UserError, match='tokens'):
        policy.infer(replace(o, instruction='xq ' * 100))
    policy.infer(o)  # and it still works


def broken_copy(base, tmp_path, damage):
    folder = Path(shutil.copytree(base / 'good', tmp_path / 'copy'))
    damage(folder)
    return folder


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'options': {'untrained': 'spear1_debgu'}}, "did you mean 'spear1_debug'"),
        ({'options': {'untraind': 'x'}}, 'did you mean "untrained"'),
        ({'options': {**UNTRAINED, 'dtype': 'int8'}}, 'dtype'),
        ({'options': {**UNTRAINED, 'steps': 1000}}, 'steps = 1000'),
        ({'options': UNTRAINED, 'device': 'tpu'}, 'device "tpu"'),
        ({'checkpoint': Path('/nowhere/at/all')}, 'no such checkpoint folder'),
        ({'checkpoint': Path('/tmp'), 'options': UNTRAINED}, 'exclude each other'),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words):
        make(**arguments)


def test_a_checkpoint_of_another_robot_is_refused_by_embodiment(base, tmp_path):
    specs = {'widowx_bridge': default_action_specs()['widowx_bridge']}
    save_checkpoint(tmp_path / 'a', contents(base, specs=specs), Spear1(CONFIG).state_dict())
    with pytest.raises(UserError, match=r'no embodiment "franka_droid" .*widowx_bridge'):
        make(checkpoint=tmp_path / 'a')
    assert make('wx250s', checkpoint=tmp_path / 'a').describe().spec.embodiment == 'widowx_bridge'


def test_statistics_without_width_and_a_tokenizer_beyond_the_table_are_refused(base, tmp_path):
    flat = replace(default_norm_stats(), translation_high=(-0.15, 0.15, 0.15))
    save_checkpoint(tmp_path / 'a', contents(base, stats=flat), Spear1(CONFIG).state_dict())
    with pytest.raises(UserError, match='translation x'):
        make(checkpoint=tmp_path / 'a')
    small = replace(CONFIG, language=replace(CONFIG.language, vocab_size=512))
    save_checkpoint(tmp_path / 'b', contents(base, model=small), Spear1(small).state_dict())
    with pytest.raises(UserError, match='2561 ids'):
        make(checkpoint=tmp_path / 'b')


def test_a_changed_file_is_refused_on_loading(base, tmp_path):
    folder = broken_copy(base, tmp_path, lambda f: (f / 'norm_stats.json').write_text('{}'))
    with pytest.raises(UserError, match=r'norm_stats\.json'):
        make(checkpoint=folder)


def test_the_checkpoints_image_fit_is_used(base, tmp_path):
    state = load_file(base / 'good/model.safetensors')
    save_checkpoint(tmp_path / 'a', contents(base, image_fit='pad'), state)
    o = make_example_observation('fr3')
    wide = replace(o.images['external'], image=o.images['external'].image[:300])
    o = replace(o, images={'external': wide})
    crop, pad = make(checkpoint=base / 'good'), make(checkpoint=tmp_path / 'a')
    assert pad.describe().details['image_fit'] == 'pad'
    assert not np.array_equal(crop.infer(o).p_base_ee, pad.infer(o).p_base_ee)
