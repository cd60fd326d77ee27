"""Published weights become a SPEAR-1 checkpoint that says it is untrained.

The publications are small and random but in exactly the published layouts: transformers' own
PaliGemma class, and the reference vectors' MoGe-1 ``model.pt``.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spear_ros.checkpoints.convert import FreshParts, convert_spear1, extend_embedding
from spear_ros.checkpoints.moge import convert_moge, load_moge_model, open_moge, open_moge_pickle
from spear_ros.checkpoints.spear1 import CheckpointContents, load_checkpoint
from spear_ros.checkpoints.verification import verify_checkpoint
from spear_ros.core.errors import UserError
from spear_ros.networks.spear1 import Spear1Config
from spear_ros.processing.embodiments import default_action_specs, default_norm_stats
from spear_ros.processing.small_tokenizer import build_small_tokenizer
from spear_ros.processing.tokens import TextTokenizer

_SPEC = importlib.util.spec_from_file_location(
    'tiny_publications', Path(__file__).with_name('tiny_publications.py')
)
tiny = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny)

pytest.importorskip('transformers', reason='the oracle needs transformers')
pytestmark = pytest.mark.skipif(
    not tiny.MOGE_VECTORS.exists(), reason='../shared/data/moge_vectors is absent'
)

CONFIG = tiny.config_for_moge_vectors(Spear1Config.named('spear1_debug'))
ROWS = 1600  # like the real table, a little longer than the vocabulary without 3D tokens (1537)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp('convert')
    oracle = tiny.tiny_paligemma(CONFIG, ROWS)
    tiny.save_hub_layout(oracle, base / 'paligemma')
    torch.save(oracle.state_dict(), base / 'oracle.pt')
    build_small_tokenizer(base / 'tokenizer.json')
    return base


@pytest.fixture(scope='module')
def contents(base):
    return CheckpointContents(
        model=CONFIG,
        specs=default_action_specs(),
        stats=default_norm_stats(),
        tokenizer=base / 'tokenizer.json',
        recipe='converted',
        trained=True,
    )


@pytest.fixture(scope='module')
def moge():
    return open_moge_pickle(tiny.MOGE_VECTORS / 'model.pt')


@pytest.fixture(scope='module')
def fresh(base):
    return FreshParts(spatial_ids=TextTokenizer(base / 'tokenizer.json').ids.spatial)


@pytest.fixture(scope='module')
def converted(base, contents, moge, fresh):
    result = convert_spear1(
        base / 'spear1', contents, base / 'paligemma', moge, fresh, dtype=torch.float32
    )
    return base / 'spear1', result


def test_the_result_is_a_sound_checkpoint_that_says_it_is_untrained(converted):
    folder, result = converted
    config = verify_checkpoint(folder)
    assert config.checkpoint_id == result.checkpoint_id
    assert not config.trained
    assert result.reports['paligemma'].fits
    assert all(
        name.startswith(('head.', 'image_', 'backbone.mask'))
        for name in result.reports['moge'].ignored
    )


@torch.no_grad()
def test_both_encoders_compute_what_their_publications_compute(converted, base):
    vlm = load_checkpoint(converted[0]).model.vlm
    oracle = tiny.tiny_paligemma(CONFIG, ROWS)
    oracle.load_state_dict(torch.load(base / 'oracle.pt'))
    side = CONFIG.siglip.table_rows * 14
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    theirs = oracle.model.multi_modal_projector(oracle.model.vision_tower(pixels).last_hidden_state)
    torch.testing.assert_close(
        vlm.siglip_projector(vlm.siglip(pixels)), theirs, rtol=1e-5, atol=1e-6
    )
    image = np.load(tiny.MOGE_VECTORS / 'inputs.npz')['photo/enc_112x112']
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.tensor(image) / 255.0 - mean) / std).permute(2, 0, 1)[None]
    expected = torch.tensor(np.load(tiny.MOGE_VECTORS / 'encoder.npz')['photo/112x112/features'])
    features = vlm.moge(pixels)[0].unflatten(-1, (4, -1)).transpose(0, 1)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


def test_old_rows_are_kept_and_new_ones_are_near_the_mean(converted, base, fresh):
    table = load_checkpoint(converted[0]).model.vlm.language.embedding.weight
    published = torch.load(base / 'oracle.pt')['model.language_model.embed_tokens.weight']
    first = fresh.spatial_ids.start
    assert first < ROWS  # the first 3D tokens fall on rows of the published table
    assert torch.equal(table[:first], published[:first])
    new = table[first:]
    assert not torch.equal(table[first:ROWS], published[first:])
    assert (new - published[:first].mean(0)).abs().max() < 0.1 * published.std()
    assert len(torch.unique(new, dim=0)) == len(new)


def test_the_same_seed_gives_the_same_checkpoint_and_another_another(
    base, contents, moge, fresh, converted, tmp_path
):
    args = contents, base / 'paligemma', moge
    torch.manual_seed(123)  # the global generator has no say
    same = convert_spear1(tmp_path / 'a', *args, fresh, dtype=torch.float32)
    other = convert_spear1(tmp_path / 'b', *args, replace(fresh, seed=1), dtype=torch.float32)
    assert same.checkpoint_id == converted[1].checkpoint_id != other.checkpoint_id


def test_a_converted_moge_folder_serves_as_well_as_the_pickle(
    base, contents, moge, fresh, converted, tmp_path
):
    convert_moge(moge, tmp_path / 'moge')
    again = convert_spear1(
        tmp_path / 'a',
        contents,
        base / 'paligemma',
        open_moge(tmp_path / 'moge'),
        fresh,
        dtype=torch.float32,
    )
    assert again.checkpoint_id == converted[1].checkpoint_id
    with pytest.raises(UserError, match='exists already'):
        convert_moge(moge, tmp_path / 'moge')


@torch.no_grad()
def test_the_whole_moge_loads_from_its_folder_and_computes_the_published_points(moge, tmp_path):
    convert_moge(moge, tmp_path / 'moge')
    with pytest.raises(UserError, match='dinov2_tiny14'):
        load_moge_model(tmp_path / 'moge')
    model = load_moge_model(tmp_path / 'moge', encoder=CONFIG.moge)
    image = np.load(tiny.MOGE_VECTORS / 'inputs.npz')['bridge/image']
    points, _ = model(torch.tensor(image).permute(2, 0, 1)[None] / 255.0, 1200)
    vectors = np.load(tiny.MOGE_VECTORS / 'forward.npz')
    mean = torch.tensor(vectors['bridge/1200/points_moments'][0])
    channels_last = points[0] if points.shape[-1] == 3 else points[0].movedim(0, -1)
    torch.testing.assert_close(channels_last.double().mean((0, 1)), mean, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda c: replace(c, siglip=replace(c.siglip, layers=3)), 'PaliGemma weights'),
        (lambda c: replace(c, moge=replace(c.moge, layers=7)), 'MoGe-1 weights'),
        (lambda c: replace(c, moge_layers=3), 'intermediate_layers is 4'),
        (lambda c: replace(c, language=replace(c.language, vocab_size=2000)), '2000 rows'),
    ],
    ids=['siglip', 'moge', 'moge layers', 'vocabulary'],
)
def test_sizes_that_do_not_fit_are_refused_and_nothing_is_written(
    base, contents, moge, fresh, tmp_path, change, words
):
    contents = replace(contents, model=change(CONFIG))
    with pytest.raises(UserError, match=words):
        convert_spear1(tmp_path / 'a', contents, base / 'paligemma', moge, fresh)
    assert list(tmp_path.iterdir()) == []


def test_three_d_tokens_below_kept_rows_leave_those_rows_alone():
    published = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    table = extend_embedding(published, 128, FreshParts(spatial_ids=range(40, 60)), torch.float32)
    assert torch.equal(table[:40], published[:40])
    assert torch.equal(table[60:100], published[60:])
    assert not torch.equal(table[40:60], published[40:60])
