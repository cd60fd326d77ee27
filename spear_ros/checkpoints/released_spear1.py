"""Adapter for released SPEAR-1 weights. It could NOT be tried against the release.

At the time of writing neither the repository nor the names of its tensors could be looked at; what
is known is the architecture: PaliGemma, MoGe's encoder, a projector, a pi0-like expert. So this
adapter does not pretend to know names. It is a table of rules in which

- PaliGemma and MoGe are expected under their own published names behind ANY prefix (which is how a
  model that wraps them names its parts), found by looking for one tensor of each;
- the rest (expert, second projector) has one guess per tensor, marked as such, and can be replaced
  by a table of the user: JSON, ``{"our name": ["published name", ...]}``, ``{i}`` for the layer.

Whatever does not match is listed with the closest names, which is what one needs to complete the
table. Nothing is loaded unless every name and shape fits.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spear_ros.checkpoints.key_map import (
    KeyReport,
    MappedSource,
    Piece,
    Rule,
    Shape,
    TensorSource,
    compare,
    expand,
)
from spear_ros.checkpoints.paligemma import IGNORABLE as PALIGEMMA_IGNORABLE
from spear_ros.checkpoints.vision_language_maps import (
    LANGUAGE_PREFIXES,
    PROJECTOR_PREFIXES,
    VISION_PREFIXES,
    dinov2_rules,
    gemma_block_rules,
    gemma_rules,
    siglip_rules,
)
from spear_ros.core.errors import UserError
from spear_ros.networks.config import Spear1Config

UNTRIED = (
    'the adapter for released SPEAR-1 weights could not be tried against the release; check the '
    'report and complete the table'
)

MAX_TABLE_BYTES = 1 << 20

# Buffers and parts of the publications that our networks have no use for, behind any prefix.
IGNORABLE = (
    *PALIGEMMA_IGNORABLE,
    r'(.*\.)?lm_head\.weight',
    r'(.*\.)?mask_token',
    r'(.*\.)?image_(mean|std)',
)

# GUESSES, in the style of openpi and lerobot: our name -> published name behind the prefix.
GUESSED_HEADS: Mapping[str, str] = {
    'expert.proprio_in': 'state_proj',
    'expert.action_in': 'action_in_proj',
    'expert.time_mix_in': 'action_time_mlp_in',
    'expert.time_mix_out': 'action_time_mlp_out',
    'expert.action_out': 'action_out_proj',
}
GUESSED_MOGE_PROJECTOR = 'moge_projector'


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefixes:
    """Where the known publications sit inside the release; each with its dot."""

    language: str
    vision: str
    projector: str
    moge: str
    expert: str
    """Prefix of the expert's Gemma layers."""
    heads: str
    """Prefix of the guessed heads."""


def open_released(
    source: TensorSource,
    config: Spear1Config,
    needed: Mapping[str, Shape],
    table_file: Path | None = None,
) -> tuple[MappedSource, KeyReport]:
    """Map released tensors to ours, as far as the table goes.

    Args:
        source: the release's tensors (``TensorFiles``).
        config: sizes, normally ``Spear1Config.named('spear1')``.
        needed: our names and shapes.
        table_file: rules of the user that replace or complete ours.

    Returns:
        The mapped tensors and the report; use the tensors only if ``report.fits``.

    Raises:
        UserError: the user's table is not readable or names tensors that do not exist.
    """
    prefixes = find_prefixes(source)
    table = expand(_rules(config, prefixes))
    if table_file is not None:
        table |= read_table(table_file, config, needed)
    return MappedSource(table, source), compare(table, source, needed, IGNORABLE)


def find_prefixes(source: TensorSource) -> Prefixes:
    """Find the wrapped publications by one tensor of each, whatever stands in front of it.

    A part that is not found keeps an empty prefix: its tensors are then reported as missing.
    """
    names = sorted(source.names())

    def find(options: tuple[str, ...], mark: str, avoid: str = '') -> str:
        for option in options:
            for name in names:
                if name.endswith(option + mark) and (not avoid or avoid not in name):
                    return name[: -len(mark)]
        return ''

    first_layer = 'layers.0.mlp.gate_proj.weight'
    language = find((*LANGUAGE_PREFIXES, ''), 'embed_tokens.weight', 'expert')
    gates = [n for n in names if n.endswith(first_layer) and not n.startswith(language or ' ')]
    return Prefixes(
        language=language,
        vision=find((*VISION_PREFIXES, ''), 'embeddings.patch_embedding.weight'),
        projector=find(PROJECTOR_PREFIXES, 'linear.weight'),
        moge=find(('backbone.', ''), 'blocks.0.ls1.gamma'),
        expert=gates[0][: -len('0.mlp.gate_proj.weight')] if gates else '',
        heads=find(('',), 'action_in_proj.weight'),
    )


def read_table(path: Path, config: Spear1Config, needed: Mapping[str, Shape]) -> dict[str, Piece]:
    """Read a user's table: our name (``{i}`` = layer) -> list of published names.

    Raises:
        UserError: not JSON of that form, or a name that our networks do not have.
    """
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise UserError(f'{path}: too large for a table of names; check the path.')
        data = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise UserError(f'{path}: cannot read it ({error.strerror}); check the path.') from None
    except (ValueError, RecursionError):
        raise UserError(f'{path}: not valid JSON; mend the table.') from None
    table: dict[str, Piece] = {}
    for ours, published in data.items() if isinstance(data, dict) else [('', None)]:
        names = [published] if isinstance(published, str) else published
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or not names:
            raise UserError(
                f'{path}: "{ours}" must map to a published name or a list of names; mend the table.'
            )
        for i in range(_layers(ours, config) if '{i}' in ours else 1):
            name = ours.replace('{i}', str(i))
            if name not in needed:
                raise UserError(f'{path}: our networks have no tensor "{name}"; mend the table.')
            table[name] = Piece(tuple(n.replace('{i}', str(i)) for n in names))
    return table


def _layers(ours: str, config: Spear1Config) -> int:
    if '.siglip.' in ours:
        return config.siglip.layers
    return config.moge.layers if '.moge.' in ours else config.language.layers


def _rules(config: Spear1Config, prefixes: Prefixes) -> list[Rule]:
    rules = [
        *siglip_rules('vlm.siglip.', prefixes.vision, config.siglip),
        *gemma_rules('vlm.language.', prefixes.language, config.language),
        *dinov2_rules('vlm.moge.', prefixes.moge, config.moge),
        *gemma_block_rules(
            'expert.blocks.', prefixes.expert, config.language, config.expert.mlp_width
        ),
        Rule('expert.norm.weight', (f'{prefixes.expert.removesuffix("layers.")}norm.weight',)),
    ]
    for end in ('weight', 'bias'):
        projector = f'{prefixes.projector}linear.{end}'
        rules.append(Rule(f'vlm.siglip_projector.{end}', (projector,)))
        moge = f'{prefixes.heads}{GUESSED_MOGE_PROJECTOR}.{end}'
        rules.append(Rule(f'vlm.moge_projector.{end}', (moge,)))
        for ours, guess in GUESSED_HEADS.items():
            rules.append(Rule(f'{ours}.{end}', (f'{prefixes.heads}{guess}.{end}',)))
    return rules
