"""report.json can be read back, report.png can be looked at."""

import json

import cv2
import numpy as np
import yaml

from spear_ros.core.config import from_mapping
from spear_ros.data.bags import BagReader
from spear_ros.data.topic_map import TopicMap
from spear_ros.evaluation.faults import Fault, FaultPlan
from spear_ros.evaluation.replay import Replay, ReplaySettings, read_motion
from spear_ros.evaluation.replay_plot import draw_report
from spear_ros.evaluation.replay_report import build_report, chunk_lines, write_outputs
from spear_ros.policies.registry import create_policy
from spear_ros.robots.registry import get_robot

ROBOT = get_robot('wx250s')
CONTEXT = {'bag': 'lab', 'seed': 0, 'damage': ['cut'], 'notes': []}


def run(bags, folder, *faults):
    mapping = from_mapping(TopicMap, yaml.safe_load(bags.MAP_YAML), 'MAP')
    with BagReader(folder, mapping, ROBOT, reference_rotation=(1.0, 0.0, 0.0, 0.0)) as reader:
        motion = read_motion(reader)
        policy = create_policy('recorded', robot=ROBOT, options={'motion': motion})
        replay = Replay(reader, policy, ReplaySettings(faults=FaultPlan(faults=faults)))
        result = replay.run()
        report = build_report(result, motion.reached, policy.describe(), 0.0, CONTEXT)
    return result, motion.reached, report, replay.config


def test_the_figures_add_up_and_survive_json(bags, tmp_path):
    folder = bags.write_widowx(tmp_path / 'b', seconds=3)
    fault = Fault(stream='arm', kind='nan', from_s=1.0, to_s=1.5)
    result, _, report, _ = run(bags, folder, fault)
    write_outputs(tmp_path / 'out', result, report)
    read = json.loads((tmp_path / 'out/report.json').read_text())
    assert read['damage'] == ['cut']
    assert read['grid_points'] == read['chunks'] + sum(
        entry['count'] for entry in read['problems'].values()
    )
    assert read['planned_against_recorded']['max_position_m'] < 1e-6
    assert read['planned_against_recorded']['gripper_agreement'] == 1.0
    assert read['dropped_inputs']['unusable']['arm']['count'] == 50
    assert read['dropped_inputs']['injected_faults'] == {'arm nan': 50}
    assert set(read['ages_ms']) == {'external', 'arm', 'gripper'}
    lines = (tmp_path / 'out/chunks.jsonl').read_text()
    assert lines == chunk_lines(result.chunks)
    assert len(lines.splitlines()) == read['chunks']
    assert np.array(json.loads(lines.splitlines()[0])['p_base_ee']).shape == (5, 3)


def test_the_picture_is_drawn_with_and_without_chunks(bags, tmp_path):
    folder = bags.write_widowx(tmp_path / 'b', seconds=2)
    for name, faults in (('good', ()), ('bad', (Fault(stream='arm', kind='drop', from_s=0.0),))):
        result, track, report, config = run(bags, folder, *faults)
        draw_report(tmp_path / f'{name}.png', result, track, report, config)
        image = cv2.imread(str(tmp_path / f'{name}.png'))
        assert image.shape[0] > 900
        assert image.shape[1] > 1200
        assert len(np.unique(image)) > 50
