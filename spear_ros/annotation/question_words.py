"""Which family a question belongs to, and which objects it names: the templates read backwards."""

import re
from typing import NamedTuple

from spear_ros.annotation.questions import PAIRED, TEMPLATES

_OBJECT = r'(?:the |an? )?(?P<{0}>[a-z0-9][a-z0-9 \-]*?)'
_ARTICLE = re.compile(r'^(?:the|an?) ', re.IGNORECASE)


class Asked(NamedTuple):
    """A question that was understood."""

    family: str
    objects: tuple[str, ...]
    question: str
    """In the words of training."""


def recognise(question: str) -> Asked | None:
    """Understand a question in the words of a template; case, articles and stops do not matter.

    None where no template has these words. Longer templates come first: "where is X" would
    otherwise take "the centre of X" for a thing.
    """
    plain = _plain(question)
    for family, template, pattern in _PATTERNS:
        match = pattern.fullmatch(plain)
        if match:
            names = {k: _ARTICLE.sub('', v).strip() for k, v in match.groupdict().items()}
            objects = tuple(names[k] for k in sorted(names))
            if all(objects) and len(set(objects)) == len(objects):
                return Asked(family, objects, template.format(**names))
    return None


def ask(family: str, *objects: str) -> Asked:
    """The first template of a family about some objects."""
    assert len(objects) == (2 if family in PAIRED else 1), objects
    names = dict(zip('ab', objects, strict=False))
    return Asked(family, objects, TEMPLATES[family][0].format(**names))


def examples() -> dict[str, str]:
    """One question of each family, for messages."""
    return {f: t[0].format(a='red cube', b='blue ball') for f, t in TEMPLATES.items()}


def _plain(text: str) -> str:
    """Lower case, single spaces; of the punctuation only the hyphens inside of words are kept."""
    return ' '.join(re.sub(r'[^a-z0-9\- ]+', ' ', text.lower().replace('_', ' ')).split())


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r'(?:the )?\{([ab])\}', template)
    words = [_plain(p) if i % 2 == 0 else _OBJECT.format(p) for i, p in enumerate(parts)]
    return re.compile(' '.join(w for w in words if w))


_PATTERNS = [
    (family, template, _pattern(template))
    for family, template in sorted(
        ((f, t) for f, ts in TEMPLATES.items() for t in ts), key=lambda x: -len(x[1])
    )
]
