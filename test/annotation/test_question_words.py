import pytest

from spear_ros.annotation.question_words import ask, examples, recognise
from spear_ros.annotation.questions import PAIRED, TEMPLATES


@pytest.mark.parametrize('family', TEMPLATES)
def test_every_template_is_recognised_with_its_objects_and_words(family):
    for template in TEMPLATES[family]:
        question = template.format(a='red cube', b='blue ball')
        found = recognise(question)
        wanted = ('red cube', 'blue ball') if family in PAIRED else ('red cube',)
        assert found == (family, wanted, question)


@pytest.mark.parametrize(
    'text', ['where is red cube', 'WHERE IS THE RED_CUBE??', ' Where is  a red cube . ']
)
def test_case_articles_and_stops_do_not_matter(text):
    assert recognise(text) == ('centre_point', ('red cube',), 'Where is the red cube?')


@pytest.mark.parametrize(
    'text',
    [
        'is it raining?',
        'where is',
        '',
        'Which is closer to the camera, the cup or the cup? Think step by step.',
    ],
)
def test_other_questions_belong_to_no_family(text):
    assert recognise(text) is None


def test_questions_of_our_own_are_understood_again():
    assert recognise(ask('projection', 'mug').question).family == 'projection'
    assert all(recognise(text).family == family for family, text in examples().items())
