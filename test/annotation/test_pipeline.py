import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from spear_ros.annotation.detectors import ReplayDetector
from spear_ros.annotation.given import GivenDepth, GivenMasks
from spear_ros.annotation.images import ImageSettings, find_images
from spear_ros.annotation.output import OutputSettings, write_output
from spear_ros.annotation.pipeline import (
    Stages,
    annotate_folder,
    count_unasked,
    read_records,
    record_name,
)
from spear_ros.annotation.questions import read_answer
from spear_ros.cli.main import main
from spear_ros.core.errors import UserError
from spear_ros.processing.spatial_bins import read_bins
from spear_ros.training.question_data import read_picture, read_questions

SIZE = (160, 120)
K = np.array([[150.0, 0, 79.5], [0, 150, 59.5], [0, 0, 1]])
IMAGES = ImageSettings(width=160, height=120)
RADIUS = 0.12
PLACES = {'ball': (-0.25, 0.0, 1.0), 'globe': (0.25, 0.05, 1.3)}


def write_picture(root, name, rng, scale='metric', labels=tuple(PLACES)):
    """Two spheres before a wall, exact."""
    v, u = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    rays = np.stack([(u - 79.5) / 150, (v - 59.5) / 150, np.ones(u.shape)], axis=-1)
    depth, mask = np.full(u.shape, 3.0), np.zeros(u.shape, np.uint8)
    boxes = []
    for number, (label, place) in enumerate(zip(labels, PLACES.values(), strict=False), 1):
        centre = np.array(place) + rng.uniform(-0.03, 0.03, 3)
        a, b = (rays**2).sum(-1), rays @ centre
        root_of = b**2 - a * (centre @ centre - RADIUS**2)
        hit = root_of > 0
        depth[hit] = ((b - np.sqrt(np.where(hit, root_of, 0))) / a)[hit]
        mask[hit] = number
        rows, columns = np.where(hit)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        boxes.append({'label': label, 'box_xyxy': [int(x) for x in box]})
    pixels = rng.integers(0, 255, (*SIZE[::-1], 3), np.uint8)
    for folder in ('images', 'boxes', 'masks', 'depth'):
        (root / folder).mkdir(exist_ok=True)
    cv2.imwrite(str(root / 'images' / f'{name}.png'), pixels)
    (root / 'boxes' / f'{name}.json').write_text(json.dumps({'boxes': boxes}))
    cv2.imwrite(str(root / 'masks' / f'{name}.png'), mask)
    np.savez(root / 'depth' / f'{name}.npz', depth=depth, K=K, scale=scale)


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        write_picture(tmp_path, f'p{i:02d}', rng)
    return tmp_path


def stages(root, **changes):
    given = {
        'detector': ReplayDetector(root / 'boxes'),
        'segmenter': GivenMasks(root / 'masks'),
        'depth': GivenDepth(root / 'depth'),
        'images': IMAGES,
    }
    return Stages(**given | changes)


def annotate(root, out='out', **options):
    names = find_images(root / 'images')
    return annotate_folder(root / 'images', names, stages(root), root / out, **options)


def write(root, out='out', **settings):
    return write_output(root / 'images', root / out, IMAGES, OutputSettings(**settings))


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()
    }


def test_pictures_become_questions_that_the_trainer_reads(data):
    counts = annotate(data)
    assert counts['annotated'] == 12
    assert counts['objects'] == 24
    for record in read_records(data / 'out'):
        for thing, place in zip(record['objects'], PLACES.values(), strict=True):
            # Only the near half of a sphere is seen.
            np.testing.assert_allclose(thing['centre'], place, atol=0.03 + RADIUS)
            near = np.linalg.norm(thing['closest'])
            assert near == pytest.approx(np.linalg.norm(place) - RADIUS, abs=0.06)
    report = write(data, val_percent=30, source='spheres')
    assert report['scale_type'] == 'metric'
    assert max(report['round_trip_error'].values()) < 0.05
    questions = read_questions([str(data / 'out/train'), str(data / 'out/val')], 'x')
    assert len(questions) == sum(report['pairs'].values()) > 12
    assert read_picture(questions[0], (60, 80)).shape == (60, 80, 3)
    bins, scale = read_bins(data / 'out' / 'bins.json')
    assert scale == 'metric'
    for split in ('train', 'val'):
        for file in (data / 'out' / split).glob('questions-*.jsonl'):
            for line in file.read_text().splitlines():
                pair = json.loads(line)
                assert pair['scale_type'] == 'metric'
                assert pair['provenance']['source'] == 'spheres'
                told = read_answer(pair['answer'], pair['family'], bins)
                truth = np.concatenate([np.ravel(v) for v in pair['values']])
                assert np.abs(told - truth).mean() < 0.05


def test_a_second_run_computes_nothing_and_writes_the_same(data):
    annotate(data)
    write(data)
    before = files(data / 'out')
    counts = annotate(data)
    assert not [name for name in counts if name.startswith('made:')]
    assert counts['stored:boxes'] == 12
    write(data)
    assert files(data / 'out') == before


def test_a_killed_run_goes_on_where_it_was(data):
    def kill(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotate(data, progress=kill)
    assert not (data / 'out' / record_name((0, 1))).exists()
    counts = annotate(data)
    assert counts['stored:boxes'] == 5
    assert counts['made:boxes'] == 7
    annotate(data, out='other')
    write(data)
    write(data, out='other')
    assert files(data / 'out') == files(data / 'other')


def test_shares_give_the_training_data_of_one_process(data):
    annotate(data, out='one')
    write(data, out='one')
    for i in (1, 0):
        with pytest.raises(UserError, match=r'shares|missing'):
            write(data, out='two')
        annotate(data, out='two', shard=(i, 2))
    write(data, out='two')
    for split in ('train', 'val'):
        assert files(data / 'one' / split) == files(data / 'two' / split)


def test_bad_input_is_counted_by_kind_and_the_rest_labelled(data):
    rng = np.random.default_rng(5)
    (data / 'images' / 'text.jpg').write_text('hello')
    cv2.imwrite(str(data / 'images' / 'tiny.png'), np.zeros((10, 10, 3), np.uint8))
    for name in ('nobox', 'cutjson', 'empty', 'blind', 'twins', 'swapped', 'small', 'flat'):
        write_picture(data, name, rng, labels=('mug', 'mug') if name == 'twins' else tuple(PLACES))
    (data / 'boxes' / 'nobox.json').unlink()
    (data / 'boxes' / 'cutjson.json').write_text('{"boxes": [{"lab')
    (data / 'boxes' / 'empty.json').write_text('{"boxes": []}')
    depth = dict(np.load(data / 'depth' / 'blind.npz'))
    np.savez(data / 'depth' / 'blind.npz', **depth | {'depth': depth['depth'] * np.nan})
    np.savez(data / 'depth' / 'flat.npz', **depth | {'depth': np.full(SIZE[::-1], 2.0)})
    boxes = json.loads((data / 'boxes' / 'swapped.json').read_text())
    boxes['boxes'][0]['box_xyxy'].reverse()
    (data / 'boxes' / 'swapped.json').write_text(json.dumps(boxes))
    mask = cv2.imread(str(data / 'masks' / 'small.png'), cv2.IMREAD_UNCHANGED)
    mask[:, 85:][mask[:, 85:] == 2] = 0
    mask[50:55, 120:125] = 2
    cv2.imwrite(str(data / 'masks' / 'small.png'), mask)
    boxes = json.loads((data / 'boxes' / 'small.json').read_text())
    boxes['boxes'][1]['box_xyxy'] = [120, 50, 125, 55]
    (data / 'boxes' / 'small.json').write_text(json.dumps(boxes))
    counts = annotate(data)
    expected = {
        'image:not_an_image': 1, 'image:too_small': 1, 'image:nothing_given': 1,
        'image:malformed_answer': 1, 'image:no_objects': 1, 'object:no_valid_points': 2,
        'object:several_instances': 1, 'object:bad_box': 1, 'object:tiny_object': 1,
        'object:coplanar': 2, 'images': 22,
    }  # fmt: skip
    assert {name: counts.get(name) for name in expected} == expected
    report = write(data)
    assert report['counts']['image:no_question'] == 3  # blind, twins, flat
    asked = [q.question for q in read_questions([str(data / 'out/train')], 'x')]
    assert not [q for q in asked if 'mug' in q]


def test_boxes_with_x_and_y_exchanged_get_no_label(data):
    """The numbers alone do not show it; the masks do."""
    for path in (data / 'boxes').glob('*.json'):
        boxes = json.loads(path.read_text())
        for box in boxes['boxes']:
            x0, y0, x1, y1 = box['box_xyxy']
            box['box_xyxy'] = [y0, x0, y1, x1]
        path.write_text(json.dumps(boxes))
    counts = annotate(data)
    assert counts['objects'] == 0
    assert counts['object:bad_mask'] + counts['object:bad_box'] == 24
    with pytest.raises(UserError, match='no question'):
        write(data)


def test_pictures_as_they_come_are_opened_or_counted(data):
    """The same scene in every form that a folder may hold; labels are those of the plain file."""
    write_picture(data, 'plain', np.random.default_rng(3))
    plain = Image.open(data / 'images' / 'plain.png').convert('RGB')
    turned = Image.Exif()
    turned[0x0112] = 6
    good = {
        'cmyk.jpg': (plain.convert('CMYK'), {}),
        'grey16.png': (Image.fromarray(np.asarray(plain.convert('L')).astype(np.uint16) * 257), {}),
        'exif.jpg': (plain.transpose(Image.Transpose.ROTATE_90), {'exif': turned}),
        'palette.png': (plain.convert('P'), {}),
    }
    for name, (picture, options) in good.items():
        picture.save(data / 'images' / name, **options)
        for folder, suffix in (('boxes', '.json'), ('masks', '.png'), ('depth', '.npz')):
            source = (data / folder / 'plain').with_suffix(suffix)
            shutil.copy(source, (data / folder / name).with_suffix(suffix))
    (data / 'images' / 'cut.jpg').write_bytes((data / 'images/cmyk.jpg').read_bytes()[:900])
    (data / 'images' / 'note.txt').write_text('by Anna')
    (data / 'images' / 'empty.png').write_bytes(b'')
    (data / 'images' / 'video.mp4').write_bytes(b'\0\0\0 ftypisom' + bytes(90))
    Image.new('1', (20000, 20000)).save(data / 'images' / 'bomb.png')
    counts = annotate(data)
    assert (counts['images'], counts['annotated'], counts['objects']) == (22, 17, 34)
    failed = {k: n for k, n in counts.items() if k.startswith(('image:', 'object:'))}
    assert failed == {'image:not_an_image': 3, 'image:damaged_image': 1, 'image:too_large': 1}
    records = {r['name']: r for r in read_records(data / 'out')}
    for name in good:
        assert records[name]['objects'] == records['plain.png']['objects']


def test_pictures_that_would_share_their_labels_are_refused(data, capsys):
    Image.open(data / 'images' / 'p00.png').save(data / 'images' / 'p00.jpg')
    folders = [f'--{name}={data / name}' for name in ('boxes', 'masks', 'depth')]
    assert main(['annotate', str(data / 'images'), f'--out={data / "out"}', *folders]) == 2
    assert 'p00.jpg and p00.png would share' in capsys.readouterr().err


def test_a_set_may_take_the_bins_of_another_one(data):
    annotate(data)
    write(data)
    rng = np.random.default_rng(8)
    for i in range(3):
        write_picture(data, f'more{i}', rng)
    annotate(data, out='robot')
    write(data, out='robot')
    theirs = data / 'out' / 'bins.json'
    assert read_bins(data / 'robot' / 'bins.json') != read_bins(theirs)
    report = write(data, out='robot', bins=theirs)
    assert read_bins(data / 'robot' / 'bins.json') == read_bins(theirs)
    assert report['bins'] == 'given: bins.json'
    write_picture(data, 'affine', rng, scale='affine')
    annotate(data, out='robot')
    with pytest.raises(UserError, match='bins of metric lengths'):
        write(data, out='robot', bins=theirs, scale='affine')


def test_only_pictures_without_a_stored_answer_are_priced(data):
    names = find_images(data / 'images')
    (data / 'images' / 'copy.png').write_bytes((data / 'images' / 'p00.png').read_bytes())
    given = stages(data)

    class Asked:
        name = 'detect-asked'

        def settings(self):
            return {'version': 1}

        def detect(self, image):
            return given.detector.detect(image)

    def unasked(names):
        images = data / 'images'
        return count_unasked(images, names, IMAGES, Asked.name, Asked().settings(), data / 'out')

    assert unasked([*names, 'copy.png', 'gone.png']) == 12
    annotate_folder(data / 'images', names[:5], stages(data, detector=Asked()), data / 'out')
    assert unasked(names) == 7


def test_metric_and_affine_pictures_are_never_mixed_silently(data):
    write_picture(data, 'affine', np.random.default_rng(6), scale='affine')
    annotate(data)
    with pytest.raises(UserError, match='12 pictures are metric and 1 affine'):
        write(data)
    report = write(data, scale='metric')
    assert report['counts']['other_scale'] == 1


def test_a_picture_changed_after_annotation_is_refused(data):
    annotate(data)
    path = data / 'images' / 'p00.png'
    path.write_bytes((data / 'images' / 'p01.png').read_bytes())
    with pytest.raises(UserError, match=r'p00.png: changed since'):
        write(data)


def test_the_command_runs_and_tells_what_it_did(data, capsys):
    folders = [f'--{name}={data / name}' for name in ('boxes', 'masks', 'depth')]
    command = ['annotate', str(data / 'images'), f'--out={data / "out"}', *folders]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert 'annotated: 12' in printed
    assert 'metric' in printed
    assert main([*command, '--detector=gemini']) == 2
    assert 'usd-per-million' in capsys.readouterr().err
    paid = [*command, '--detector=gemini', '--usd-per-million=0.3,2.5']
    assert main(paid) == 2
    assert 'add --yes' in capsys.readouterr().err
    assert main([*paid, '--yes']) == 2
    assert '--sam2' in capsys.readouterr().err
    assert main([*command, '--box-kind=best']) == 2
    empty = Path(data / 'none')
    empty.mkdir()
    assert main(['annotate', str(empty), f'--out={data / "o2"}', *folders]) == 2
    assert 'no file in it' in capsys.readouterr().err


def test_the_page_shows_pictures_boxes_and_questions(data, capsys):
    assert main(['annotate', 'show', str(data)]) == 2
    annotate(data)
    write(data)
    assert main(['annotate', 'show', str(data / 'out'), '--count=3']) == 0
    page = (data / 'out' / 'show' / 'index.html').read_text()
    assert page.count('<h2>') == 3
    assert '&lt;3d' in page
    for name in ('boxes', 'cloud'):
        pictures = sorted((data / 'out' / 'show').glob(f'*-{name}.png'))
        assert len(pictures) == 3
        drawn = cv2.imread(str(pictures[0]))
        red = (drawn == (60, 60, 230)).all(axis=-1)
        assert red.sum() > 50
