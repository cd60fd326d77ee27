"""Small random weights in exactly the layouts in which the real ones are published."""

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import save_file

from spear_ros.networks.config import Spear1Config

MOGE_VECTORS = Path(__file__).parents[2] / '../shared/data/moge_vectors'


def tiny_paligemma(config: Spear1Config, vocab_size: int, seed: int = 0):
    """Make transformers' own PaliGemma at the sizes of ``config``, random, float32."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    s, g = config.siglip, config.language
    torch.manual_seed(seed)
    model = PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config={
                'model_type': 'siglip_vision_model',
                'hidden_size': s.width,
                'num_hidden_layers': s.layers,
                'num_attention_heads': s.heads,
                'intermediate_size': s.mlp_width,
                'image_size': s.table_rows * s.patch,
                'patch_size': s.patch,
                'vision_use_head': False,
                'hidden_act': 'gelu_pytorch_tanh',
            },
            text_config={
                'model_type': 'gemma',
                'hidden_size': g.width,
                'num_hidden_layers': g.layers,
                'num_attention_heads': g.heads,
                'num_key_value_heads': g.kv_heads,
                'head_dim': g.head_dim,
                'intermediate_size': g.mlp_width,
                'vocab_size': vocab_size,
                'hidden_activation': 'gelu_pytorch_tanh',
            },
            image_token_index=1,
            projection_dim=g.width,
            hidden_size=g.width,
        )
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.05)
    return model


def save_hub_layout(model, folder: Path, max_shard_size: str = '10GB') -> Path:
    """Write the published names (``language_model.model.*``), as the hub's files have them."""
    from safetensors.torch import save_file as save

    folder.mkdir(parents=True, exist_ok=True)
    renamed = {}
    for name, tensor in model.state_dict().items():
        for new, old in (
            ('model.language_model.', 'language_model.model.'),
            ('model.vision_tower.', 'vision_tower.vision_model.'),
            ('model.multi_modal_projector.', 'multi_modal_projector.'),
        ):
            if name.startswith(new):
                renamed[old + name[len(new) :]] = tensor.clone()
    save(renamed, folder / 'model.safetensors', metadata={'format': 'pt'})
    return folder


def save_state_dict_layout(model, folder: Path) -> Path:
    """Write the names of the state dict of transformers 5."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    save_file(state, folder / 'model.safetensors', metadata={'format': 'pt'})
    return folder


def config_for_moge_vectors(base: Spear1Config) -> Spear1Config:
    """Sizes of the reference vectors' encoder: width 64, 6 blocks, 2 heads of 32, 37 x 37."""
    moge = dataclasses.replace(
        base.moge, width=64, layers=6, heads=2, mlp_width=256, table_rows=37, table_columns=37
    )
    return dataclasses.replace(base, moge=moge)
