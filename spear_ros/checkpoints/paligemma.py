"""PaliGemma-3B weights as published: which layout a file has, and its tensors under our names."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from spear_ros.checkpoints.key_map import KeyReport, MappedSource, Rule, Shape, compare, expand
from spear_ros.checkpoints.tensor_files import TensorFiles
from spear_ros.checkpoints.vision_language_maps import (
    LANGUAGE_PREFIXES,
    PROJECTOR_PREFIXES,
    VISION_PREFIXES,
    PaligemmaLayout,
    gemma_rules,
    siglip_rules,
)
from spear_ros.core.errors import UserError
from spear_ros.networks.config import Spear1Config

# Present in some exports and derived or tied: buffers of positions and of rotary frequencies, and
# the head, which is the embedding itself.
IGNORABLE = (
    r'.*\.position_ids',
    r'.*\.rotary_emb\.inv_freq',
    r'(language_model\.|model\.)*lm_head\.weight',
)


def paligemma_rules(
    config: Spear1Config, layout: PaligemmaLayout, prefixes: Mapping[str, str]
) -> list[Rule]:
    """Rules for all that PaliGemma brings.

    Args:
        config: sizes.
        layout: how the file is named.
        prefixes: where our networks keep ``siglip``, ``projector`` and ``language``, each with its
            dot.
    """
    projector, ours = f'{layout.projector}linear.', prefixes['projector']
    return [
        *siglip_rules(prefixes['siglip'], layout.vision, config.siglip),
        Rule(f'{ours}weight', (f'{projector}weight',)),
        Rule(f'{ours}bias', (f'{projector}bias',)),
        *gemma_rules(prefixes['language'], layout.language, config.language),
    ]


def detect_layout(path: Path, names: Iterable[str]) -> PaligemmaLayout:
    """Tell the layout from one name of each part.

    Raises:
        UserError: a part is not there; the sentence shows what the file does hold.
    """
    names = set(names)

    def prefix(part: str, options: Iterable[str], mark: str) -> str:
        for option in options:
            if option + mark in names:
                return option
        first = ', '.join(sorted(names)[:2]) or 'nothing'
        raise UserError(
            f'{path}: no PaliGemma {part} in it (it holds {first} ...); give the safetensors of '
            'google/paligemma-3b.'
        )

    return PaligemmaLayout(
        language=prefix('language model', LANGUAGE_PREFIXES, 'embed_tokens.weight'),
        vision=prefix('vision tower', VISION_PREFIXES, 'embeddings.patch_embedding.weight'),
        projector=prefix('projector', PROJECTOR_PREFIXES, 'linear.weight'),
    )


def open_paligemma(
    path: Path | str, config: Spear1Config, prefixes: Mapping[str, str], needed: Mapping[str, Shape]
) -> tuple[MappedSource, KeyReport]:
    """Open published weights and hold them against a config.

    Args:
        path: file, index or folder.
        config: sizes to expect.
        prefixes: see :func:`paligemma_rules`.
        needed: our names and shapes; the embedding's rows are taken from the file, since our table
            has more rows than the published one.

    Returns:
        The tensors under our names, and the report, which the caller turns into an error.

    Raises:
        UserError: the files are damaged or not PaliGemma.
    """
    files = TensorFiles(path)
    layout = detect_layout(Path(path), files.names())
    table = expand(paligemma_rules(config, layout, prefixes))
    shapes = {name: needed[name] for name in table}
    embedding = f'{prefixes["language"]}embedding.weight'
    published = files.shape(table[embedding].published[0])
    if len(published) == 2 and published[0] <= shapes[embedding][0]:
        shapes[embedding] = (published[0], shapes[embedding][1])
    return MappedSource(table, files), compare(table, files, shapes, IGNORABLE)
