"""SPEAR-VLM: PaliGemma with a second, geometric image encoder and 3-D tokens in its vocabulary.

Prefix order: [external image tokens, wrist image tokens, text tokens]. The order of the images and
the text is unconfirmed in the paper; this is pi0's.

Shapes: B batch, L text tokens, P prefix tokens, D model width, V vocabulary, T cache slots.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spear_ros.networks.config import Spear1Config
from spear_ros.networks.gemma import GemmaModel, attend
from spear_ros.networks.moge import MogeEncoder, imagenet_normalize
from spear_ros.networks.siglip import SiglipEncoder


@dataclass(frozen=True, kw_only=True)
class PrefixInputs:
    """What the model sees and is told. Images are RGB in [0, 1]; both encoders share the pixels.

    Whether a mask is None is part of the static shape: without masks no mask is ever built.
    """

    external: Tensor
    """(B, 3, H, W)."""
    tokens: Tensor
    """(B, L) int64, padded on the right."""
    wrist: Tensor | None = None
    """(B, 3, H, W), or None: its tokens are then absent for the whole batch."""
    token_mask: Tensor | None = None
    """(B, L) bool, True = real token; None = no padding."""
    wrist_mask: Tensor | None = None
    """(B,) bool, True = the sample has a wrist image; for mixed training batches. A masked image
    equals an absent one: its tokens are looked at by nobody and take no positions."""
    picture: Tensor | None = None
    """(B,) int64: which picture each sample sees, of fewer than B; None = its own. For training on
    several instructions of one picture, whose encoders then run once."""


@dataclass
class AnswerCache:
    """Keys and values of a question and of the answer so far (greedy or constrained decoding)."""

    kv: Tensor
    """(layers, 2, B, G, T, K)."""
    key_mask: Tensor
    """(B, 1, 1, T) bool: slots that hold something real."""
    position: Tensor
    """(B, 1) rotary position of the next token."""
    slot: int
    """Next free slot."""


class SpearVlm(nn.Module):
    """Two image encoders, two projectors and their mean, Gemma."""

    def __init__(self, config: Spear1Config) -> None:
        super().__init__()
        self.config = config
        width = config.language.width
        self.siglip = SiglipEncoder(config.siglip, config.siglip_table)
        self.moge = MogeEncoder(config.moge)
        self.siglip_projector = nn.Linear(config.siglip.width, width)
        self.moge_projector = nn.Linear(config.moge_layers * config.moge.width, width)
        self.language = GemmaModel(config.language)
        if not self.siglip_projector.weight.is_meta:
            self._initialize_projectors()

    def encode_image(self, image_B3HW: Tensor) -> Tensor:
        """Return visual tokens (B, N, D): the mean of both projected encoders [paper].

        Image features are not scaled by sqrt(D), text embeddings are (net effect of every
        published PaliGemma implementation).
        """
        config = self.config
        siglip = self.siglip(image_B3HW * 2 - 1)
        pixels = imagenet_normalize(image_B3HW)
        moge = self.moge(pixels, config.moge_layers, config.moge_norm)
        return 0.5 * (self.siglip_projector(siglip) + self.moge_projector(moge))

    def embed_prefix(self, inputs: PrefixInputs) -> tuple[Tensor, Tensor | None]:
        """Return embedded prefix tokens (B, P, D) and their validity (B, P), None = all valid."""
        parts = [self.encode_image(inputs.external)]
        if inputs.wrist is not None:
            parts.append(self.encode_image(inputs.wrist))
        if inputs.picture is not None:
            parts = [part[inputs.picture] for part in parts]
        parts.append(self.language.embed(inputs.tokens))
        x_BPD = torch.cat([p.to(parts[-1].dtype) for p in parts], dim=1)
        if inputs.token_mask is None and (inputs.wrist_mask is None or inputs.wrist is None):
            return x_BPD, None
        valid_BP = torch.ones(x_BPD.shape[:2], dtype=torch.bool, device=x_BPD.device)
        text = inputs.tokens.shape[1]
        if inputs.token_mask is not None:
            valid_BP[:, valid_BP.shape[1] - text :] = inputs.token_mask
        if inputs.wrist_mask is not None and inputs.wrist is not None:
            first = parts[0].shape[1]
            valid_BP[:, first : first + parts[1].shape[1]] = inputs.wrist_mask[:, None]
        return x_BPD, valid_BP

    def text_features(self, inputs: PrefixInputs, answer_mask_BL: Tensor | None = None) -> Tensor:
        """Run the whole language stack; return normed features of the text tokens (B, L, D).

        ``answer_mask_BL`` (bool) marks the answer: images and question are seen by all and see
        each other both ways, answer tokens see them and the answer so far (PaliGemma's prefix-LM).
        """
        x_BPD, valid_BP = self.embed_prefix(inputs)
        mask = prefix_lm_mask(x_BPD.shape[1], valid_BP, answer_mask_BL)
        y_BPD = self.language(x_BPD, mask, prefix_positions(x_BPD, valid_BP))
        return y_BPD[:, x_BPD.shape[1] - inputs.tokens.shape[1] :]

    def logits(self, features: Tensor) -> Tensor:
        """Scores of all tokens; select the positions that matter first (V is 258240 at full size).

        Args:
            features: (..., D) as :meth:`text_features` returns them.
        """
        return self.language.logits(features)

    def forward(self, inputs: PrefixInputs, answer_mask_BL: Tensor | None = None) -> Tensor:
        """Return the next-token scores at every text position (B, L, V)."""
        return self.logits(self.text_features(inputs, answer_mask_BL))

    def start_answer(self, inputs: PrefixInputs, max_tokens: int) -> tuple[Tensor, AnswerCache]:
        """Read images and question; return scores of the first answer token (B, V) and a cache."""
        x_BPD, valid_BP = self.embed_prefix(inputs)
        cache = self._answer_cache(x_BPD, valid_BP, max_tokens)
        batch, slots, _ = x_BPD.shape
        mask = None if valid_BP is None else valid_BP[:, None, None]
        factors = self.language.rotary(prefix_positions(x_BPD, valid_BP))
        for i, block in enumerate(self.language.blocks):
            q, k, v = block.project(x_BPD, factors)
            cache.kv[i, 0, :, :, :slots] = k
            cache.kv[i, 1, :, :, :slots] = v
            x_BPD = block.finish(x_BPD, attend(q, k, v, mask))
        last = torch.full((batch,), slots - 1, device=x_BPD.device)
        if inputs.token_mask is not None:
            last = last - inputs.tokens.shape[1] + inputs.token_mask.sum(1)
        rows = torch.arange(batch, device=x_BPD.device)
        return self.logits(self.language.norm(x_BPD[rows, last])), cache

    def answer_step(self, token_B1: Tensor, cache: AnswerCache) -> Tensor:
        """Append one answer token to the cache and return the scores of the next one (B, V)."""
        assert cache.slot < cache.kv.shape[4], 'the cache is full: ask for more max_tokens'
        x_B1D = self.language.embed(token_B1)
        factors = self.language.rotary(cache.position)
        cache.key_mask[..., cache.slot] = True
        for i, block in enumerate(self.language.blocks):
            q, k, v = block.project(x_B1D, factors)
            cache.kv[i, 0, :, :, cache.slot : cache.slot + 1] = k
            cache.kv[i, 1, :, :, cache.slot : cache.slot + 1] = v
            y = attend(q, cache.kv[i, 0], cache.kv[i, 1], cache.key_mask)
            x_B1D = block.finish(x_B1D, y)
        cache.slot += 1
        cache.position = cache.position + 1
        return self.logits(self.language.norm(x_B1D[:, 0]))

    def initialize(self) -> None:
        """Initialise every parameter for training from scratch."""
        self.siglip.initialize()
        self.moge.initialize()
        self.language.initialize()
        self._initialize_projectors()

    @torch.no_grad()
    def _initialize_projectors(self) -> None:
        for projector in (self.siglip_projector, self.moge_projector):
            nn.init.normal_(projector.weight, std=1 / math.sqrt(projector.in_features))
            nn.init.zeros_(projector.bias)

    def _answer_cache(self, x_BPD: Tensor, valid_BP: Tensor | None, max_tokens: int) -> AnswerCache:
        batch, slots, _ = x_BPD.shape
        config = self.config.language
        total = slots + max_tokens
        shape = (config.layers, 2, batch, config.kv_heads, total, config.head_dim)
        key_mask = torch.zeros(batch, 1, 1, total, dtype=torch.bool, device=x_BPD.device)
        key_mask[..., :slots] = True if valid_BP is None else valid_BP[:, None, None]
        position = prefix_positions(x_BPD, valid_BP)[:, -1:].expand(batch, 1) + 1
        return AnswerCache(x_BPD.new_zeros(shape), key_mask, position, slots)


def prefix_positions(x_BPD: Tensor, valid_BP: Tensor | None) -> Tensor:
    """Rotary positions of the prefix: (1, P) without padding, else (B, P) that skip padding."""
    if valid_BP is None:
        return torch.arange(x_BPD.shape[1], device=x_BPD.device)[None]
    return (valid_BP.cumsum(1) - 1).clamp_min(0)


def prefix_lm_mask(
    tokens: int, valid_BP: Tensor | None, answer_mask_BL: Tensor | None
) -> Tensor | None:
    """Mask (B, 1, 1 or P, P) of a bidirectional prefix and a causal answer; None = see all.

    Padding rows see the valid prefix, so that no softmax is empty; nobody looks at the result.
    """
    if answer_mask_BL is None:
        return None if valid_BP is None else valid_BP[:, None, None]
    batch, text = answer_mask_BL.shape
    answer_BP = answer_mask_BL.new_zeros(batch, tokens)
    answer_BP[:, tokens - text :] = answer_mask_BL
    order = torch.arange(tokens, device=answer_BP.device)
    causal = (order[:, None] >= order) & answer_BP[:, :, None]
    allowed_BPP = ~answer_BP[:, None, :] | causal
    if valid_BP is not None:
        allowed_BPP = allowed_BPP & valid_BP[:, None, :]
    return allowed_BPP[:, None]
