"""Share files are found in the source tree, in an ament prefix and beside the interpreter."""

import pytest

from spear_ros.core import resources
from spear_ros.core.errors import UserError


def test_the_source_tree_wins_over_an_installed_copy(tmp_path, monkeypatch):
    stale = tmp_path / 'share' / 'spear_ros' / 'config'
    stale.mkdir(parents=True)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    roots = resources.share_roots()
    assert (roots[0] / 'package.xml').is_file()
    assert tmp_path / 'share' / 'spear_ros' in roots[1:]


def test_an_ament_prefix_is_searched(tmp_path, monkeypatch):
    target = tmp_path / 'share' / 'spear_ros' / 'config' / 'only_here.yaml'
    target.parent.mkdir(parents=True)
    target.write_text('')
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    assert resources.share_file('config/only_here.yaml') == target


def test_a_missing_file_names_the_places():
    with pytest.raises(UserError, match='searched') as caught:
        resources.share_file('config/none.yaml')
    assert 'config/none.yaml' in str(caught.value)
