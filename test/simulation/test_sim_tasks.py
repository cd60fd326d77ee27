import pytest

from spear_ros.core.errors import UserError
from spear_ros.simulation.catalogue import COLOURS, SHAPES, split_name
from spear_ros.simulation.tasks import (
    DIRECTIONS,
    FAMILIES,
    HELD_OUT_SEEDS,
    TRAINING_SEEDS,
    VALIDATION_SEEDS,
    Task,
    check_family,
    parse_instruction,
    wordings,
    words,
)

TASKS = [
    Task('touch', 'red_cube'),
    *(Task('push', 'blue_block', direction=d) for d in DIRECTIONS),
    Task('pick', 'yellow_ball'),
    Task('put', 'green_cylinder', receptacle='purple_plate'),
    Task('put', 'green_cylinder', receptacle='red_bowl'),
]


@pytest.mark.parametrize('task', TASKS)
def test_every_wording_is_understood_as_the_task_it_says(task):
    texts = wordings(task)
    assert texts[0] == words(task)
    assert len(set(texts)) >= 2
    for text in texts:
        assert parse_instruction(text) == task
        assert parse_instruction(f'Please, {text.upper()}!') == task


@pytest.mark.parametrize(
    ('text', 'task'),
    [
        ('push the red cube to the left', Task('push', 'red_cube', direction='left')),
        ('shove a red cube forwards', Task('push', 'red_cube', direction='forward')),
        ('pick the red cube up', Task('pick', 'red_cube')),
        ('move the red cube right', Task('push', 'red_cube', direction='right')),
        ('move the red cube into the blue bowl', Task('put', 'red_cube', receptacle='blue_bowl')),
    ],
)
def test_people_word_things_differently(text, task):
    assert parse_instruction(text) == task


@pytest.mark.parametrize(
    ('text', 'named'),
    [
        ('touch the pink cube', '"pink"'),
        ('pick up the red banana', '"banana"'),
        ('make me a coffee', 'none of'),
        ('', 'none of'),
        ('push the red cube', 'none of'),
        ('x' * 2000, 'none of'),
    ],
)
def test_what_is_not_understood_is_named(text, named):
    with pytest.raises(UserError, match=named) as caught:
        parse_instruction(text)
    assert len(str(caught.value)) < 400


def test_an_empty_family_is_chosen_by_the_seed_and_a_wrong_one_is_corrected():
    assert [check_family('', s) for s in range(4)] == list(FAMILIES)
    assert check_family('put', 0) == 'put'
    with pytest.raises(UserError, match='did you mean "touch"'):
        check_family('tuoch', 0)


def test_no_seed_serves_two_purposes():
    splits = [set(s) for s in (TRAINING_SEEDS, VALIDATION_SEEDS, HELD_OUT_SEEDS)]
    assert sum(map(len, splits)) == len(set.union(*splits))


def test_names_of_objects_tell_colour_and_shape():
    for colour in COLOURS:
        for shape in SHAPES:
            assert split_name(f'{colour}_{shape}') == (colour, SHAPES[shape])
    with pytest.raises(UserError, match='blue_teapot'):
        split_name('blue_teapot')
