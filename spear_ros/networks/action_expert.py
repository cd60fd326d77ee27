"""The action expert: a narrow Gemma stack that reads the language stack's keys and values.

Suffix tokens: [proprioception, action_1 .. action_H]. Design of pi0 (openpi), with SPEAR-1's
convention tau = 0 noise, tau = 1 data. An action is [x y z | quaternion w x y z | gripper].

Shapes: B batch, H horizon, A action dim (8), D expert width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spear_ros.networks.config import ExpertConfig, GemmaConfig
from spear_ros.networks.gemma import GemmaBlocks, RmsNorm, attend, initialize_blocks, rotary


class ActionExpert(nn.Module):
    """Token embeddings, blocks and velocity head; the joint passes are in ``spear1.py``."""

    def __init__(self, config: ExpertConfig, language: GemmaConfig) -> None:
        """``language`` gives depth, heads and head dim, which the two stacks share."""
        super().__init__()
        self.config = config
        self.language_config = language
        width = config.width
        self.proprio_in = nn.Linear(config.proprio_dim, width)
        self.action_in = nn.Linear(config.action_dim, width)
        self.time_mix_in = nn.Linear(2 * width, width)
        self.time_mix_out = nn.Linear(width, width)
        self.blocks = GemmaBlocks(width, config.mlp_width, language)
        self.norm = RmsNorm(width, language.norm_eps)
        self.action_out = nn.Linear(width, config.action_dim)
        if not self.norm.weight.is_meta:
            self.initialize()

    def embed_proprio(self, proprio: Tensor) -> Tensor:
        """Proprioception (B, proprio_dim) as one token (B, 1, D)."""
        return self.proprio_in(proprio.to(self.proprio_in.weight.dtype))[:, None]

    def embed_time(self, tau_B: Tensor) -> Tensor:
        """The time half of the first mixing layer, bias included: (B, 1, D).

        It does not depend on the actions: with a fixed number of steps it is a table that is
        computed once.
        """
        waves_BD = time_waves(tau_B, self.config)
        layer = self.time_mix_in
        half = self.config.width
        return F.linear(waves_BD.to(layer.weight.dtype), layer.weight[:, half:], layer.bias)[
            :, None
        ]

    def embed_actions(self, actions_BHA: Tensor, time_B1D: Tensor) -> Tensor:
        """Noisy actions (B, H, A) with their time as tokens (B, H, D).

        Equals Linear(cat[action, time]) -> SiLU -> Linear with the first product split in two.
        ``time_B1D`` may also be (1, 1, D), or (B, H, D) for a flow time per token.
        """
        a_BHD = self.action_in(actions_BHA.to(self.action_in.weight.dtype))
        weight = self.time_mix_in.weight[:, : self.config.width]
        return self.time_mix_out(F.silu(F.linear(a_BHD, weight) + time_B1D))

    def velocity(self, x_BHD: Tensor) -> Tensor:
        """Final norm and head: velocities (B, H, A), float32 (float64 for a float64 model).

        The quaternion part is a free 4-vector: losses and integrator project it to the tangent
        space.
        """
        y = self.norm(x_BHD).to(self.action_out.weight.dtype)
        y = self.action_out(y)
        return y if y.dtype == torch.float64 else y.float()

    def forward(self, proprio: Tensor, actions_BHA: Tensor, tau_B: Tensor) -> Tensor:
        """Run the expert without any prefix: velocities (B, H, A). For studies of the flow."""
        x_BSD = torch.cat(
            [
                self.embed_proprio(proprio),
                self.embed_actions(actions_BHA, self.embed_time(tau_B)),
            ],
            dim=1,
        )
        tokens = torch.arange(x_BSD.shape[1], device=x_BSD.device)
        config = self.language_config
        factors = rotary(tokens[None], config.head_dim, config.rope_theta)
        block_of = (tokens > 0).long()
        mask = (block_of[None, :] <= block_of[:, None])[None, None]
        for block in self.blocks:
            q, k, v = block.project(x_BSD, factors)
            x_BSD = block.finish(x_BSD, attend(q, k, v, mask))
        return self.velocity(x_BSD[:, 1:])

    @torch.no_grad()
    def initialize(self) -> None:
        """Initialise for training from scratch.

        The head is not zeroed: the cosine loss is undefined at a zero velocity and its gradient
        grows as 1 / |v| towards it.
        """
        for layer in (self.proprio_in, self.action_in, self.time_mix_in, self.time_mix_out):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
        initialize_blocks(self.blocks)
        nn.init.zeros_(self.norm.weight)
        nn.init.normal_(self.action_out.weight, std=1 / math.sqrt(self.config.width))
        nn.init.zeros_(self.action_out.bias)


def time_waves(tau_B: Tensor, config: ExpertConfig) -> Tensor:
    """pi0's time embedding (B, D): [sin | cos] of 2 pi tau / period, log-spaced periods.

    Computed in float64: the shortest period turns tau = 1 into 1571 rad, where float32 has lost
    four digits.
    """
    count = config.width // 2
    fraction = torch.linspace(0, 1, count, dtype=torch.float64, device=tau_B.device)
    ratio = math.log(config.time_max_period / config.time_min_period)
    frequency = 2 * math.pi / config.time_min_period * torch.exp(-ratio * fraction)
    angle = tau_B.double()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
