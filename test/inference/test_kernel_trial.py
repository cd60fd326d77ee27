"""Kernels that fail or compute something else are found before a robot depends on them."""

import pytest
import torch

from spear_ros.core.errors import UserError
from spear_ros.inference import kernel_trial
from spear_ros.inference.kernel_trial import fault_of, proven_ops
from spear_ros.inference.ops import TorchOps
from spear_ros.networks.spear1 import Spear1Config

CONFIG = Spear1Config.named('spear1_debug')
CPU = torch.device('cpu')


class CompileError(Exception):
    """Triton's own errors are no RuntimeErrors either."""


class DoesNotCompile(TorchOps):
    def expert_layer(self, x, layer, factors, keys):
        raise CompileError('out of resource: shared memory, Required: 131072, limit: 101376')


class RunsOut(TorchOps):
    def expert_layer(self, x, layer, factors, keys):
        raise torch.OutOfMemoryError('CUDA out of memory')


class NotANumber(TorchOps):
    def head(self, x, head):
        return super().head(x, head) * float('nan')


class WrongActivation(TorchOps):
    def geglu(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return gate * up


class ForgetsTheSum(TorchOps):
    def add_rms_norm(self, x, y):
        return super().add_rms_norm(x, None)


class UnturnedKeys(TorchOps):
    def rotate_and_store(self, qkv, factors, kv_rows):
        return super().rotate_and_store(qkv, torch.ones_like(factors), kv_rows)


class BlindToTheSuffix(TorchOps):
    def expert_layer(self, x, layer, factors, keys):
        keys.kv[keys.first :].zero_()
        return x + 0 * super().expert_layer(x.clone(), layer, factors, keys)


class StepsTwice(TorchOps):
    def euler(self, actions, velocity, step, owed, flow):
        return super().euler(actions, velocity, 2 * step, owed, flow)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_right_operations_have_no_fault(dtype):
    assert fault_of(TorchOps, CONFIG, CPU, dtype) == ''


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    'ops',
    [NotANumber, WrongActivation, ForgetsTheSum, UnturnedKeys, BlindToTheSuffix, StepsTwice],
)
def test_operations_that_compute_something_else_are_found(ops, dtype):
    assert 'differ by' in fault_of(ops, CONFIG, CPU, dtype)


def test_a_kernel_that_fails_is_named_with_its_cause():
    fault = fault_of(DoesNotCompile, CONFIG, CPU, torch.float32)
    assert 'CompileError: out of resource: shared memory' in fault


def test_memory_that_runs_out_is_no_fault_of_a_kernel():
    with pytest.raises(torch.OutOfMemoryError):
        fault_of(RunsOut, CONFIG, CPU, torch.float32)


@pytest.fixture
def broken_kernels(monkeypatch):
    monkeypatch.setattr(kernel_trial, 'choose_ops', lambda *_: (DoesNotCompile, ''))


def test_auto_falls_back_to_torch_and_says_why(broken_kernels):
    ops, reason = proven_ops('auto', CONFIG, CPU, torch.float32)
    assert ops is TorchOps
    assert 'slower: a kernel failed on cpu (CompileError' in reason


def test_kernels_that_were_asked_for_refuse(broken_kernels):
    with pytest.raises(UserError, match=r'kernels = triton cannot run.*choose auto or torch'):
        proven_ops('triton', CONFIG, CPU, torch.float32)


def test_the_trial_leaves_the_random_numbers_of_the_program_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fault_of.cache_clear()
    fault_of(TorchOps, CONFIG, CPU, torch.float32)
    assert torch.equal(torch.rand(3), expected)
