"""SPEAR-1 from transformers' own modules, eager, as its user would put them together; and its pi0.

The network is the same as ours, number by number: SigLIP and DINOv2 with their projectors, Gemma
with a DynamicCache, a second Gemma as the expert, the same integrator. Weights are copied from our
model, so that a difference of the chunks is arithmetic alone.
"""

import torch
import transformers
from torch import nn

from spear_ros.networks import flow_matching
from spear_ros.networks.action_expert import time_waves
from spear_ros.networks.moge import imagenet_normalize
from spear_ros.processing.images import ImageSize, fit_image


class TransformersNetwork(nn.Module):
    """Five modules of transformers and seven linear maps."""

    def __init__(self, ours, device):
        super().__init__()
        config, dtype = ours.config, ours.vlm.language.norm.weight.dtype
        self.config = config
        width, expert = config.language.width, config.expert.width
        with torch.device(device), default_dtype(dtype):
            self.siglip = transformers.SiglipVisionModel(siglip_config(config.siglip))
            self.moge = transformers.Dinov2Model(dinov2_config(config.moge))
            self.language = transformers.GemmaModel(gemma_config(config.language, both_ways=True))
            self.expert = transformers.GemmaModel(
                gemma_config(config.language, expert, config.expert.mlp_width, vocabulary=2)
            )
            self.siglip_projector = nn.Linear(config.siglip.width, width)
            self.moge_projector = nn.Linear(config.moge_layers * config.moge.width, width)
            self.proprio_in = nn.Linear(config.expert.proprio_dim, expert)
            self.action_in = nn.Linear(config.expert.action_dim, expert)
            self.time_mix_in = nn.Linear(2 * expert, expert)
            self.time_mix_out = nn.Linear(expert, expert)
            self.action_out = nn.Linear(expert, config.expert.action_dim)
        self.eval().requires_grad_(False)
        copy_weights(ours, self)

    def encode(self, picture):
        """(1, 3, H, W) in [0, 1] to visual tokens."""
        dtype = self.action_out.weight.dtype
        low = self.siglip((picture * 2 - 1).to(dtype), interpolate_pos_encoding=True)
        deep = self.moge(imagenet_normalize(picture).to(dtype), output_hidden_states=True)
        last = deep.hidden_states[-self.config.moge_layers :]
        if self.config.moge_norm:
            last = [self.moge.layernorm(h) for h in last]
        features = torch.cat([h[:, 1:] for h in last], dim=-1)
        return 0.5 * (self.siglip_projector(low.last_hidden_state) + self.moge_projector(features))

    @torch.no_grad()
    def sample(self, pictures, tokens, proprio, noise, steps):
        """A chunk (1, H, 8): prefill into a DynamicCache, then the steps on top of it."""
        prefix = [self.encode(p) for p in pictures]
        prefix = torch.cat([*prefix, self.language.embed_tokens(tokens)], dim=1)
        length, suffix = prefix.shape[1], 1 + noise.shape[1]
        device = noise.device
        cache = transformers.DynamicCache()
        self.language(
            inputs_embeds=prefix,  # no mask, and a stack that looks both ways: the fastest form
            position_ids=torch.arange(length, device=device)[None],
            past_key_values=cache,
            use_cache=True,
        )
        mask = torch.ones(1, 1, suffix, length + suffix, dtype=torch.bool, device=device)
        mask[:, :, 0, length + 1 :] = False  # proprioception does not look at actions
        positions = torch.arange(length, length + suffix, device=device)[None]
        state = self.proprio_in(proprio.to(self.proprio_in.weight.dtype))[:, None]
        times = flow_matching.euler_times(steps)

        def velocity(actions, i):
            out = self.expert(
                inputs_embeds=torch.cat([state, self.embed_actions(actions, times[i])], dim=1),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            cache.crop(-suffix)
            return self.action_out(out[:, 1:]).float()

        return flow_matching.integrate(velocity, noise, self.config.flow, None, steps)

    def embed_actions(self, actions, tau):
        """Noisy actions and their time as tokens."""
        x = self.action_in(actions.to(self.action_in.weight.dtype))
        tau = torch.full((1,), tau, device=actions.device)
        waves = time_waves(tau, self.config.expert).to(x.dtype)[:, None].expand_as(x)
        mixed = self.time_mix_in(torch.cat([x, waves], dim=-1))
        return self.time_mix_out(nn.functional.silu(mixed))


class TransformersPi0:
    """PI0ForConditionalGeneration at our sizes, random weights, one square picture.

    It takes square pictures only: the largest square whose patches are not more than ours, so
    vision tokens are equal or a little fewer. It has no second encoder.
    """

    def __init__(self, config, cameras, dtype, device):
        total = config.external_tokens + (cameras > 1) * config.wrist_tokens
        self.side = int(total**0.5)
        self.tokens, self.config, self.dtype = self.side**2, config, dtype
        self.image_token = config.language.vocab_size - 20
        with torch.device(device), default_dtype(dtype):
            self.model = transformers.PI0ForConditionalGeneration(self._config()).eval()
        self.image_ids = torch.full((1, self.tokens), self.image_token, device=device)
        self.seen = torch.ones(1, 1, dtype=torch.bool, device=device)

    def picture(self, raw):
        """(H, W, 3) uint8 to (1, 1, 3, S, S) in [-1, 1]."""
        side = self.side * self.config.siglip.patch
        return (fit_image(raw, ImageSize(side, side)) * 2 - 1).to(self.dtype)[None, None]

    def sample(self, picture, tokens, proprio, noise, steps):
        """(1, H, 8): its own sampler, straight lines in every dimension."""
        tokens = tokens.clamp_max(self.image_token - 1)
        return self.model.sample_actions(
            state=proprio.to(self.dtype),
            input_ids=torch.cat([self.image_ids, tokens], dim=1),
            pixel_values=picture,
            noise=noise.to(self.dtype),
            pixel_attention_mask=self.seen,
            num_steps=steps,
        )

    def _config(self):
        c = self.config
        text = gemma_config(c.language).to_dict()
        vision = siglip_config(c.siglip, self.side * c.siglip.patch).to_dict()
        expert = gemma_config(c.language, c.expert.width, c.expert.mlp_width).to_dict()
        return transformers.PI0Config(
            vlm_config={
                'model_type': 'paligemma',
                'text_config': text,
                'vision_config': vision,
                'projection_dim': c.language.width,
                'image_token_id': self.image_token,
            },
            dit_config=expert,
            chunk_size=c.flow.horizon,
            max_state_dim=c.expert.proprio_dim,
            max_action_dim=c.expert.action_dim,
        )


class default_dtype:  # noqa: N801
    """Weights made inside get this type; buffers with a type of their own keep it."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_):
        torch.set_default_dtype(self.before)


def siglip_config(c, size=None):
    return transformers.SiglipVisionConfig(
        hidden_size=c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        intermediate_size=c.mlp_width,
        patch_size=c.patch,
        # square tables only: others get as many rows, and the values are copied in
        image_size=size or round((c.table_rows * c.table_columns) ** 0.5) * c.patch,
        layer_norm_eps=c.norm_eps,
        hidden_act='gelu_pytorch_tanh',
        vision_use_head=False,
    )


def dinov2_config(c):
    return transformers.Dinov2Config(
        hidden_size=c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        mlp_ratio=c.mlp_width // c.width,
        image_size=c.table_rows * c.patch,
        patch_size=c.patch,
        hidden_act='gelu',
        layer_norm_eps=c.norm_eps,
    )


def gemma_config(c, width=0, mlp_width=0, vocabulary=0, both_ways=None):
    return transformers.GemmaConfig(
        vocab_size=vocabulary or c.vocab_size,
        hidden_size=width or c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim,
        intermediate_size=mlp_width or c.mlp_width,
        rms_norm_eps=c.norm_eps,
        hidden_act='gelu_pytorch_tanh',
        hidden_activation='gelu_pytorch_tanh',
        use_bidirectional_attention=both_ways,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
    )


@torch.no_grad()
def copy_weights(ours, theirs):
    """Our weights into transformers' modules; their positional tables become ours per grid."""
    vlm = ours.vlm
    siglip = theirs.siglip
    embed = siglip.embeddings
    embed.patch_embedding.weight.copy_(vlm.siglip.patch.weight)
    embed.patch_embedding.bias.copy_(vlm.siglip.patch.bias)
    embed.interpolate_pos_encoding = our_table(vlm.siglip, embed.patch_embedding)
    for block, layer in zip(vlm.siglip.blocks, siglip.encoder.layers, strict=True):
        norms = layer.layer_norm1, layer.layer_norm2
        copy_vit_layer(block, norms, layer.self_attn, layer.self_attn.out_proj, layer.mlp)
    siglip.post_layernorm.load_state_dict(vlm.siglip.norm.state_dict())

    moge = theirs.moge
    embed = moge.embeddings
    embed.patch_embeddings.projection.weight.copy_(vlm.moge.patch.weight)
    embed.patch_embeddings.projection.bias.copy_(vlm.moge.patch.bias)
    embed.cls_token.copy_(vlm.moge.cls_token[None, None])
    embed.interpolate_pos_encoding = our_table(vlm.moge, embed.patch_embeddings.projection)
    layers = find(moge, 'encoder.layer', 'layers')
    for block, layer in zip(vlm.moge.blocks, layers, strict=True):
        # 5.17: attention.attention.query and attention.output.dense; later: q_proj and o_proj
        inner = find(layer, 'attention.attention', 'attention')
        out = find(layer, 'attention.output.dense', 'attention.o_proj')
        copy_vit_layer(block, (layer.norm1, layer.norm2), inner, out, layer.mlp)
        layer.layer_scale1.lambda1.copy_(block.scale1)
        layer.layer_scale2.lambda1.copy_(block.scale2)
    moge.layernorm.load_state_dict(vlm.moge.norm.state_dict())

    theirs.language.embed_tokens.weight.copy_(vlm.language.embedding.weight)
    copy_gemma(vlm.language, theirs.language)
    copy_gemma(ours.expert, theirs.expert)
    for name in ('siglip_projector', 'moge_projector'):
        getattr(theirs, name).load_state_dict(getattr(vlm, name).state_dict())
    for name in ('proprio_in', 'action_in', 'time_mix_in', 'time_mix_out', 'action_out'):
        getattr(theirs, name).load_state_dict(getattr(ours.expert, name).state_dict())


def our_table(encoder, projection):
    """MoGe interpolates its table differently, and ours need not be square."""

    def interpolate(_, height, width):
        patch = encoder.patch.patch
        table = encoder.position(height // patch, width // patch)
        return table[None].to(projection.weight.dtype)

    return interpolate


def copy_vit_layer(block, norms, attention, out, mlp):
    for ours, theirs in zip((block.norm1, block.norm2), norms, strict=True):
        theirs.load_state_dict(ours.state_dict())
    names = (('q_proj', 'query'), ('k_proj', 'key'), ('v_proj', 'value'))
    parts = [find(attention, *n) for n in names]
    for kind in ('weight', 'bias'):
        for part, rows in zip(parts, getattr(block.attention.qkv, kind).chunk(3), strict=True):
            getattr(part, kind).copy_(rows)
    out.load_state_dict(block.attention.out.state_dict())
    for name in ('fc1', 'fc2'):
        getattr(mlp, name).load_state_dict(getattr(block.mlp, name).state_dict())


def copy_gemma(stack, theirs):
    for block, layer in zip(stack.blocks, theirs.layers, strict=True):
        layer.input_layernorm.weight.copy_(block.norm1.weight)
        layer.post_attention_layernorm.weight.copy_(block.norm2.weight)
        a = layer.self_attn
        parts = (a.q_proj, a.k_proj, a.v_proj)
        rows = block.attention.qkv.weight.split([p.weight.shape[0] for p in parts])
        for part, weight in zip(parts, rows, strict=True):
            part.weight.copy_(weight)
        a.o_proj.weight.copy_(block.attention.out.weight)
        gate, up = block.mlp.gate_up.weight.chunk(2)
        layer.mlp.gate_proj.weight.copy_(gate)
        layer.mlp.up_proj.weight.copy_(up)
        layer.mlp.down_proj.weight.copy_(block.mlp.down.weight)
    theirs.norm.weight.copy_(stack.norm.weight)


def find(module, *paths):
    """The first of several submodules that is there: versions of transformers differ in names."""
    for path in paths:
        try:
            return module.get_submodule(path)
        except AttributeError:
            continue
    raise AttributeError(f'{type(module).__name__} has none of {paths}')
