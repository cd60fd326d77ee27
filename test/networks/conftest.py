"""Small configurations and weight copies that the parity tests of the networks share."""

import pytest
import torch

from spear_ros.networks.config import GemmaConfig, VitConfig


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def vit_config():
    return VitConfig(width=32, layers=3, heads=4, mlp_width=48, table_rows=4, table_columns=4)


@pytest.fixture
def gemma_config():
    return GemmaConfig(
        vocab_size=64, width=32, layers=3, heads=4, kv_heads=1, head_dim=16, mlp_width=48
    )


@pytest.fixture
def scramble():
    """Give every parameter a value of its own, so that a swapped or skipped one shows."""

    @torch.no_grad()
    def apply(module, scale=0.2):
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)
        return module.eval()

    return apply


@pytest.fixture
def copy_vit():
    """Copy a transformers ViT layer (q/k/v apart) into one of our blocks (fused)."""

    @torch.no_grad()
    def apply(block, norms, attention, out, mlp):
        for ours, theirs in zip((block.norm1, block.norm2), norms, strict=True):
            ours.load_state_dict(theirs.state_dict())
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        block.attention.qkv.weight.copy_(torch.cat([p.weight for p in parts]))
        block.attention.qkv.bias.copy_(torch.cat([p.bias for p in parts]))
        block.attention.out.load_state_dict(out.state_dict())
        block.mlp.load_state_dict(mlp.state_dict())

    return apply


@pytest.fixture
def copy_gemma():
    """Copy transformers' Gemma layers and final norm into one of our stacks."""

    @torch.no_grad()
    def apply(stack, theirs):
        for block, layer in zip(stack.blocks, theirs.layers, strict=True):
            block.norm1.weight.copy_(layer.input_layernorm.weight)
            block.norm2.weight.copy_(layer.post_attention_layernorm.weight)
            a = layer.self_attn
            qkv = torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight])
            block.attention.qkv.weight.copy_(qkv)
            block.attention.out.weight.copy_(a.o_proj.weight)
            gate_up = torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])
            block.mlp.gate_up.weight.copy_(gate_up)
            block.mlp.down.weight.copy_(layer.mlp.down_proj.weight)
        stack.norm.weight.copy_(theirs.norm.weight)

    return apply


@pytest.fixture
def relative(record_property):
    """Largest difference over the largest value; noted for benchmarks/parity_table.py."""

    def measure(ours, oracle):
        value = ((ours - oracle).abs().max() / oracle.abs().max()).item()
        record_property('fp32_relative', value)
        return value

    return measure


@pytest.fixture
def assert_within_oracle_noise(record_property):
    """bfloat16: our error to the float32 oracle is no larger than the oracle's own in bfloat16."""

    def rms(x):
        return x.float().square().mean().sqrt().item()

    def check(ours_bf16, oracle_bf16, oracle_fp32, factor=1.5):
        noise = rms(oracle_bf16.float() - oracle_fp32)
        assert 0 < noise < rms(oracle_fp32)
        ratio = rms(ours_bf16.float() - oracle_fp32) / noise
        record_property('bf16_error_over_oracles', ratio)
        assert ratio < factor

    return check
