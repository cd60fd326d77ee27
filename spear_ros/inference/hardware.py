"""What a figure was measured on, and what that hardware reaches on its own.

A card's data sheet says what nobody reaches; :func:`measure_card` times one large matrix product
and one large copy on the card at hand, which makes its row of the roofline.
"""

import importlib.metadata
import os
import platform
import resource
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

from spear_ros.inference.roofline import Card
from spear_ros.inference.timing import Budget, Timing, time_device

PACKAGES = ('torch', 'triton', 'transformers', 'numpy', 'safetensors')

_QUERY = {
    'driver': 'driver_version',
    'sm_clock_mhz': 'clocks.sm',
    'sm_clock_max_mhz': 'clocks.max.sm',
    'memory_clock_mhz': 'clocks.mem',
    'temperature_c': 'temperature.gpu',
    'power_w': 'power.draw',
    'power_limit_w': 'power.limit',
}


def describe(device: torch.device) -> dict[str, object]:
    """Hardware, driver and versions, for the JSON line of a benchmark."""
    found: dict[str, object] = {
        'device': device.type,
        'processor': _processor(),
        'threads': torch.get_num_threads(),
        'cores': len(os.sched_getaffinity(0)),
        'load_average': [round(v, 1) for v in os.getloadavg()],
        'kernel': platform.release(),
        'python': platform.python_version(),
        'versions': _versions(),
    }
    if device.type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        found |= {
            'gpu': properties.name,
            'multiprocessors': properties.multi_processor_count,
            'memory_gb': round(properties.total_memory / 1e9, 1),
            'l2_mb': round(getattr(properties, 'L2_cache_size', 0) / 2**20),
            'capability': f'{properties.major}.{properties.minor}',
            'cuda': torch.version.cuda,
            'driver': gpu_state(device).get('driver'),
        }
    return found


def commit_of(folder: Path) -> str:
    """Short commit of the clone ``folder``; empty where there is no clone or no git."""
    if not (folder / '.git').exists():
        return ''  # an installed package, perhaps inside somebody else's clone
    command = ['git', '-C', str(folder), 'rev-parse', '--short', 'HEAD']
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ''
    return answer.stdout.strip()


def gpu_state(device: torch.device) -> dict[str, object]:
    """Clocks, temperature and power of now, by nvidia-smi; empty where that cannot be asked.

    Asked for while work is queued: an idle card shows its resting clocks.
    """
    if device.type != 'cuda':
        return {}
    for identity in filter(None, (_identity(device), str(device.index or 0))):
        answer = _ask_nvidia_smi(identity)
        if answer:
            return parse_state(answer)
    return {}


def _ask_nvidia_smi(identity: str) -> str:
    """One line of CSV; empty where nvidia-smi is missing or does not know a field."""
    command = [
        'nvidia-smi',
        f'--query-gpu={",".join(_QUERY.values())}',
        '--format=csv,noheader,nounits',
        f'--id={identity}',
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ''
    lines = answer.stdout.strip().splitlines()
    return lines[0] if lines else ''


def parse_state(line: str) -> dict[str, object]:
    """One line of nvidia-smi's CSV as numbers; what it does not know ("[N/A]") is left out."""
    state: dict[str, object] = {}
    for name, text in zip(_QUERY, line.split(','), strict=False):
        value = text.strip()
        if not value or value.startswith('['):
            continue
        try:
            state[name] = value if name == 'driver' else float(value)
        except ValueError:
            continue
    return state


def peak_memory_mb(device: torch.device) -> dict[str, float]:
    """Largest memory so far: the process on the host, the allocator on a GPU."""
    peak = {'host_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if device.type == 'cuda':
        peak['device_mb'] = torch.cuda.max_memory_allocated(device) / 2**20
        peak['device_reserved_mb'] = torch.cuda.max_memory_reserved(device) / 2**20
    return {k: round(v, 1) for k, v in peak.items()}


def measure_card(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], budget: Budget
) -> tuple[Card, dict[str, float]]:
    """Time a large matrix product and a large copy: the roofline of the card at hand.

    Args:
        device: where.
        dtype: of the products; sums are the library's.
        shape: (m, n, k) of the model's own largest product, timed beside: what its few rows cost.
        budget: per measurement.

    Returns:
        The card with medians of the large ones, and further figures: ``model_gemm_tflop_s``.
    """
    on_gpu = device.type == 'cuda'
    side, copied = (8192, 2 << 30) if on_gpu else (1024, 64 << 20)
    rate = _gemm_tflop_s(device, dtype, (side, side, side), budget)
    bandwidth = _copy_gb_s(device, copied, budget)
    name = torch.cuda.get_device_name(device) if on_gpu else _processor()
    card = Card(
        name=f'{name} (measured here)',
        tflop_s=rate,
        gb_s=bandwidth,
        source=f'{side}^3 product in {str(dtype).removeprefix("torch.")}, copy of {copied >> 20} '
        f'MiB counting bytes read and written; {"median" if on_gpu else "fastest"} of several',
    )
    return card, {'model_gemm_tflop_s': _gemm_tflop_s(device, dtype, shape, budget)}


def _gemm_tflop_s(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], budget: Budget
) -> float:
    m, n, k = shape
    # random numbers: zeros draw less power and run faster
    a = torch.randn(m, k, device=device, dtype=dtype)
    b = torch.randn(n, k, device=device, dtype=dtype)
    out = torch.empty(m, n, device=device, dtype=dtype)
    timing = time_device(lambda: torch.mm(a, b.T, out=out), budget, device)
    return 2 * m * n * k / _ceiling_ms(timing, device) * 1e-9


def _copy_gb_s(device: torch.device, size: int, budget: Budget) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = time_device(lambda: target.copy_(source), budget, device)
    return 2 * size / _ceiling_ms(timing, device) * 1e-6


def _ceiling_ms(timing: Timing, device: torch.device) -> float:
    """A card keeps its median up; a CPU is shared with other programs: its fastest run counts."""
    return timing.p50 if device.type == 'cuda' else timing.least


def _identity(device: torch.device) -> str:
    """What nvidia-smi calls this device: CUDA_VISIBLE_DEVICES renumbers torch's."""
    uuid = str(getattr(torch.cuda.get_device_properties(device), 'uuid', ''))
    return uuid if uuid.startswith('GPU-') or not uuid else f'GPU-{uuid}'


def _processor() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.machine()


def _versions() -> Mapping[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions | {'torch': torch.__version__}
