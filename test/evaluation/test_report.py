import json

import cv2
import numpy as np

from spear_ros.evaluation.report import table, write_contact_sheet, write_json
from spear_ros.evaluation.results import EpisodeResult, summarize


def episode(seed, outcome='success', family='touch', **more):
    fields = {
        'family': family,
        'seed': seed,
        'variant': 'standard',
        'instruction': 'touch the red cube',
        'outcome': outcome,
        'duration_s': 2.0 + seed,
        'target': 'red_cube',
        'first_touched': 'red_cube' if outcome == 'success' else 'blue_ball',
        'chunks': 10,
    }
    return EpisodeResult(**fields | more)


RESULTS = [
    episode(0),
    episode(1, 'wrong_object', rejected={'CHUNK_STEP_LIMIT': 2}, inference_ms=(5.0, 7.0)),
    episode(2, holds={'CAMERA_STALE': 1}),
    episode(0, 'timeout', 'put'),
]


def test_sums_are_per_family_with_every_miss_named():
    touch, put = summarize(RESULTS)
    assert (touch.family, touch.successes, touch.episodes) == ('touch', 2, 3)
    assert touch.missed == (1,)
    assert touch.went_to_target == 2
    assert touch.rejected == 2
    assert touch.holds == 1
    assert touch.median_s == 3.0
    assert put.rate == 0
    assert np.isnan(put.median_s)


def test_the_table_shows_rates_and_intervals():
    text = table(summarize(RESULTS))
    assert '| touch | 2/3 (67 %) | 21 - 94 % |' in text
    assert '| put | 0/1 (0 %)' in text


def test_the_json_is_strict_and_complete(tmp_path):
    path = tmp_path / 'deep' / 'results.json'
    write_json(path, RESULTS, {'policy': 'scripted'})
    document = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
    assert [f['family'] for f in document['families']] == ['touch', 'put']
    assert len(document['episodes']) == 4
    assert document['episodes'][1]['rejected'] == {'CHUNK_STEP_LIMIT': 2}
    assert document['settings'] == {'policy': 'scripted'}


def test_the_contact_sheet_has_a_row_per_episode_with_pictures(tmp_path):
    frames = tuple(np.full((120, 160, 3), 40 * k, np.uint8) for k in range(4))
    path = tmp_path / 'sheet.png'
    assert write_contact_sheet(
        path, [episode(0, frames=frames), episode(1), episode(2, frames=frames * 5)]
    )
    assert cv2.imread(str(path)).shape == (2 * (18 + 120), 1600, 3)
    assert not write_contact_sheet(tmp_path / 'none.png', [episode(0)])
    assert not (tmp_path / 'none.png').exists()
