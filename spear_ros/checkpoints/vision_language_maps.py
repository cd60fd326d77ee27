"""Tables from published vision and language names to those of our networks.

Only names live here; :mod:`paligemma` and :mod:`moge` read the files. The tables are written for
the sizes of a config, so that they are strict: one layer more or less in a file is reported.

Sources: names and shapes of google/paligemma-3b (safetensors on the Hugging Face hub, and the
state dict of transformers 5.23) and of microsoft/MoGe v1 (``model.pt``, DINOv2 names).
"""

from dataclasses import dataclass

from spear_ros.checkpoints.key_map import Rule
from spear_ros.networks.config import GemmaConfig, VitConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PaligemmaLayout:
    """Prefixes of the three parts of PaliGemma in one file, each with its dot."""

    language: str
    vision: str
    projector: str


# Every combination that has been seen: the hub's files (language_model.model, vision_tower.
# vision_model), state dicts of transformers 5 (model.language_model, model.vision_tower), of 4.52
# (model.vision_tower.vision_model), and what transformers 5 saves (language_model.model,
# vision_tower). The part with the inner prefix comes first, as it contains the other.
LANGUAGE_PREFIXES = ('language_model.model.', 'model.language_model.')
VISION_PREFIXES = (
    'vision_tower.vision_model.',
    'model.vision_tower.vision_model.',
    'vision_tower.',
    'model.vision_tower.',
)
PROJECTOR_PREFIXES = ('multi_modal_projector.', 'model.multi_modal_projector.')


def siglip_rules(ours: str, published: str, config: VitConfig) -> list[Rule]:
    """SigLIP encoder; ``ours`` and ``published`` are the prefixes with their dot."""
    layer, block = f'{published}encoder.layers.{{i}}.', f'{ours}blocks.{{i}}.'
    n, thirds = config.layers, (config.width,) * 3
    rules = [
        Rule(f'{ours}patch.weight', (f'{published}embeddings.patch_embedding.weight',)),
        Rule(f'{ours}patch.bias', (f'{published}embeddings.patch_embedding.bias',)),
        Rule(f'{ours}position.table', (f'{published}embeddings.position_embedding.weight',)),
    ]
    for end in ('weight', 'bias'):
        qkv = tuple(f'{layer}self_attn.{p}_proj.{end}' for p in 'qkv')
        rules += [
            Rule(f'{ours}norm.{end}', (f'{published}post_layernorm.{end}',)),
            Rule(f'{block}attention.qkv.{end}', qkv, thirds, n),
            Rule(f'{block}attention.out.{end}', (f'{layer}self_attn.out_proj.{end}',), (), n),
            Rule(f'{block}norm1.{end}', (f'{layer}layer_norm1.{end}',), (), n),
            Rule(f'{block}norm2.{end}', (f'{layer}layer_norm2.{end}',), (), n),
            Rule(f'{block}mlp.fc1.{end}', (f'{layer}mlp.fc1.{end}',), (), n),
            Rule(f'{block}mlp.fc2.{end}', (f'{layer}mlp.fc2.{end}',), (), n),
        ]
    return rules


def gemma_block_rules(ours: str, published: str, config: GemmaConfig, mlp_width: int) -> list[Rule]:
    """Gemma blocks; ``ours`` ends in ``blocks.``, ``published`` in ``layers.``."""
    layer, block, n = f'{published}{{i}}.', f'{ours}{{i}}.', config.layers
    rows = (config.heads * config.head_dim, *(config.kv_heads * config.head_dim,) * 2)
    qkv = tuple(f'{layer}self_attn.{p}_proj.weight' for p in 'qkv')
    gate_up = (f'{layer}mlp.gate_proj.weight', f'{layer}mlp.up_proj.weight')
    after = f'{layer}post_attention_layernorm.weight'
    return [
        Rule(f'{block}norm1.weight', (f'{layer}input_layernorm.weight',), (), n),
        Rule(f'{block}norm2.weight', (after,), (), n),
        Rule(f'{block}attention.qkv.weight', qkv, rows, n),
        Rule(f'{block}attention.out.weight', (f'{layer}self_attn.o_proj.weight',), (), n),
        Rule(f'{block}mlp.gate_up.weight', gate_up, (mlp_width,) * 2, n),
        Rule(f'{block}mlp.down.weight', (f'{layer}mlp.down_proj.weight',), (), n),
    ]


def gemma_rules(ours: str, published: str, config: GemmaConfig) -> list[Rule]:
    """Embedding (tied head), blocks and final norm of the language model."""
    return [
        Rule(f'{ours}embedding.weight', (f'{published}embed_tokens.weight',)),
        Rule(f'{ours}norm.weight', (f'{published}norm.weight',)),
        *gemma_block_rules(f'{ours}blocks.', f'{published}layers.', config, config.mlp_width),
    ]


def dinov2_rules(ours: str, published: str, config: VitConfig) -> list[Rule]:
    """DINOv2 encoder of MoGe with its fused qkv; class token and table lose their batch axis."""
    layer, block, n = f'{published}blocks.{{i}}.', f'{ours}blocks.{{i}}.', config.layers
    rules = [
        Rule(f'{ours}cls_token', (f'{published}cls_token',), lead=2),
        Rule(f'{ours}position.table', (f'{published}pos_embed',), lead=1),
        Rule(f'{ours}patch.weight', (f'{published}patch_embed.proj.weight',)),
        Rule(f'{ours}patch.bias', (f'{published}patch_embed.proj.bias',)),
        Rule(f'{block}scale1', (f'{layer}ls1.gamma',), (), n),
        Rule(f'{block}scale2', (f'{layer}ls2.gamma',), (), n),
    ]
    for end in ('weight', 'bias'):
        rules += [
            Rule(f'{ours}norm.{end}', (f'{published}norm.{end}',)),
            Rule(f'{block}attention.qkv.{end}', (f'{layer}attn.qkv.{end}',), (), n),
            Rule(f'{block}attention.out.{end}', (f'{layer}attn.proj.{end}',), (), n),
            Rule(f'{block}norm1.{end}', (f'{layer}norm1.{end}',), (), n),
            Rule(f'{block}norm2.{end}', (f'{layer}norm2.{end}',), (), n),
            Rule(f'{block}mlp.fc1.{end}', (f'{layer}mlp.fc1.{end}',), (), n),
            Rule(f'{block}mlp.fc2.{end}', (f'{layer}mlp.fc2.{end}',), (), n),
        ]
    return rules
