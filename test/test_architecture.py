"""The import rules of the house: who may know whom, and what a process never loads.

Two proofs: every import statement is compared with the table (a sentence names file, line and
rule), and one process per layer imports the layer and looks at what was loaded behind its back.
"""

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'spear_ros'
STANDARD = sys.stdlib_module_names
MESSAGES = ('_msgs', '_srvs', '_interfaces')


@dataclass(frozen=True)
class Rule:
    """What a layer may import at module level, and what only inside functions."""

    ours: str = ''
    third: str = ''
    ours_lazily: str = ''
    third_lazily: str = ''

    def allows(self, name: str, lazy: bool) -> bool:
        """Return whether ``name``, one of ours or a third-party module, may be imported."""
        if name.startswith('spear_ros.'):
            allowed = self.ours.split() + (self.ours_lazily.split() if lazy else [])
            inner = name.removeprefix('spear_ros.')
            return any(inner == entry or inner.startswith(f'{entry}.') for entry in allowed)
        allowed = self.third.split() + (self.third_lazily.split() if lazy else [])
        top = name.split('.')[0]
        return top in allowed or ('MESSAGES' in allowed and top.endswith(MESSAGES))


RULES = {
    'core': Rule('', 'numpy yaml'),
    'robots': Rule('core', 'numpy cv2'),
    'networks': Rule('', 'torch'),
    'checkpoints': Rule(
        'core networks', 'torch safetensors numpy cv2', third_lazily='transformers'
    ),
    'processing': Rule('core robots', 'numpy cv2 tokenizers'),
    'runtime': Rule('core robots', 'numpy cv2'),
    'simulation': Rule('core robots runtime', 'numpy cv2 mujoco rtbdata'),
    'inference': Rule('core networks processing', 'torch numpy cv2', third_lazily='triton'),
    'policies': Rule(
        'core robots processing simulation.expert',
        'numpy cv2',
        ours_lazily='checkpoints inference networks',
        third_lazily='torch',
    ),
    'data': Rule('core robots runtime processing', 'numpy cv2 rosbags lz4 pyarrow av matplotlib'),
    'annotation': Rule(
        'core robots processing networks checkpoints data',
        'numpy cv2 torch pyarrow av matplotlib',
        third_lazily='transformers google scipy ray PIL',
    ),
    'training': Rule(
        'core networks checkpoints processing data robots',
        'torch numpy cv2 matplotlib yaml',  # a run writes down its whole recipe
    ),
    'evaluation': Rule('core robots policies runtime simulation data', 'numpy cv2 matplotlib'),
    'ros': Rule(
        'core robots runtime simulation policies data',
        'numpy cv2 rclpy MESSAGES launch launch_ros ament_index_python rpyutils',
        third_lazily='cv_bridge',
    ),
    'cli': Rule(
        'core robots networks checkpoints processing runtime simulation inference policies data '
        'annotation training evaluation ros',
        'tyro numpy cv2',
        third_lazily='torch',
    ),
}  # fmt: skip

# One module of a layer that may do more than its layer, with the reason.
EXCEPTIONS = {
    'processing.images': Rule(third='torch'),  # the one image path runs on the GPU too
    'processing.action_space': Rule(third_lazily='torch'),  # array-generic: numpy or torch
    'processing.arrays': Rule(third_lazily='torch'),
    # the node compares the checkpoint's ActionSpec with the robot it drives; numpy only
    'ros.policy_report': Rule('processing.embodiments'),
    'ros.nodes.replay_node': Rule('processing.embodiments'),
    # names of tasks and shapes of fingers that the expert works from; pure numpy, proved below
    'policies.scripted': Rule('simulation.grippers simulation.tasks'),
    # loaded only where kernels run; a kernel is compiled from its module's text
    'inference.triton_kernels': Rule(third='triton'),
    'inference.triton_ops': Rule(third='triton'),
    # loaded by the registry only when this policy is asked for
    'policies.spear1': Rule('checkpoints inference networks', 'torch'),
}

# Layer (or module) -> modules that importing all of it must not load.
NEVER_LOADED = {
    'core': 'torch rclpy mujoco cv2',
    'robots': 'torch rclpy mujoco',
    'networks': 'rclpy mujoco transformers spear_ros.core spear_ros.processing spear_ros.robots',
    'checkpoints': 'rclpy mujoco transformers spear_ros.policies spear_ros.training',
    'processing': 'rclpy mujoco transformers spear_ros.networks',
    'processing.normalization': 'torch',
    'processing.action_space': 'torch',
    'runtime': 'torch rclpy mujoco',
    'simulation': 'torch rclpy',
    'simulation.expert': 'torch rclpy mujoco',
    'inference': 'rclpy mujoco spear_ros.policies spear_ros.training',
    'policies.registry': 'torch rclpy mujoco',
    'policies.scripted': 'torch rclpy mujoco',
    'policies.recorded': 'torch rclpy mujoco',
    'policies.hold': 'torch rclpy mujoco',
    'policies': 'rclpy mujoco spear_ros.training',
    'data': 'torch rclpy mujoco spear_ros.policies',
    'annotation': 'rclpy mujoco transformers ray spear_ros.policies',
    'training': 'rclpy mujoco spear_ros.policies spear_ros.simulation',
    'evaluation': 'torch rclpy spear_ros.training',
    'ros': 'torch spear_ros.networks spear_ros.training',
    'ros.nodes.executor_node': 'torch mujoco spear_ros.networks spear_ros.inference',
    'cli.main': 'torch rclpy mujoco cv2',
}


@dataclass(frozen=True)
class Import:
    """One imported name."""

    module: str
    path: Path
    line: int
    name: str
    lazy: bool


def modules() -> Iterator[tuple[str, Path]]:
    """Yield (``layer.module``, path) of every source file below a layer."""
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(PACKAGE).with_suffix('').parts
        if len(parts) > 1:
            yield '.'.join(p for p in parts if p != '__init__'), path


def is_type_checking(node: ast.AST) -> bool:
    """Return whether this is ``if TYPE_CHECKING:``, whose body is never run."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith('TYPE_CHECKING')


def imported_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Return full names; of ``from spear_ros.x import y`` the module y, else x."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, 'relative imports hide the layer'
    base = node.module or ''
    if base.startswith('spear_ros'):
        full = [f'{base}.{alias.name}' for alias in node.names]
        return [n if importable(n) else base for n in full]
    return [base]


def importable(name: str) -> bool:
    """Return whether a dotted name of ours is a module file or a package."""
    path = ROOT / Path(*name.split('.'))
    return path.is_dir() or path.with_suffix('.py').is_file()


def imports_of(module: str, path: Path) -> Iterator[Import]:
    """Yield the imports of one file; those in functions and type checks are lazy."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                for name in imported_names(child):
                    yield Import(module, path, child.lineno, name, lazy)
            else:
                inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, lazy or inner or is_type_checking(child))

    yield from walk(ast.parse(path.read_text(encoding='utf-8')), False)


def violation(entry: Import) -> str | None:
    """Return a sentence when an import breaks the table."""
    layer = entry.module.split('.')[0]
    top = entry.name.split('.')[0]
    if top in STANDARD or entry.name in ('spear_ros', f'spear_ros.{layer}'):
        return None
    if entry.name.startswith(f'spear_ros.{layer}.'):
        return None
    rules = (RULES[layer], EXCEPTIONS.get(entry.module, Rule()))
    if any(rule.allows(entry.name, entry.lazy) for rule in rules):
        return None
    where = 'inside a function' if entry.lazy else 'at module level'
    return (
        f'{entry.path.relative_to(ROOT)}:{entry.line}: {layer} may not import {entry.name} {where}'
    )


def test_every_import_follows_the_table() -> None:
    found = [imp for module, path in modules() for imp in imports_of(module, path)]
    assert len(found) > 50  # the walk itself works
    broken = [sentence for imp in found if (sentence := violation(imp))]
    assert not broken, '\n' + '\n'.join(broken)


def test_a_forbidden_import_is_seen() -> None:
    path = PACKAGE / 'runtime' / 'safety.py'
    assert violation(Import('runtime.safety', path, 1, 'torch', True))
    assert violation(Import('core.types', path, 1, 'spear_ros.robots.spec', False))
    assert violation(Import('policies.spear1', path, 1, 'spear_ros.simulation.world', False))
    assert violation(Import('policies.registry', path, 1, 'torch', False))
    assert not violation(Import('policies.registry', path, 1, 'torch', True))
    assert not violation(Import('ros.qos', path, 1, 'sensor_msgs.msg', False))


def test_every_folder_of_the_package_has_a_rule() -> None:
    layers = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != '__pycache__'}
    assert layers <= set(RULES), f'without a rule: {layers - set(RULES)}'


def test_every_init_file_is_empty() -> None:
    filled = [p for p in PACKAGE.rglob('*/__init__.py') if p.read_text().strip()]
    assert not filled


def test_only_checkpoints_opens_pickles() -> None:
    users = [
        path.relative_to(ROOT)
        for module, path in modules()
        if not module.startswith('checkpoints') and 'torch.load(' in path.read_text()
    ]
    assert not users


LOAD = """
import importlib, json, pkgutil, sys
name, never = sys.argv[1], sys.argv[2].split()
root = importlib.import_module(name)
if hasattr(root, '__path__'):
    for info in pkgutil.walk_packages(root.__path__, f'{name}.'):
        try:
            importlib.import_module(info.name)
        except ImportError as error:  # launch is not on PyPI; our folder of that name hides it
            # triton comes with a CUDA torch and is absent elsewhere
            if not (error.name or '').startswith(('launch', 'triton')):
                raise
print(json.dumps([m for m in never if m in sys.modules]))
"""
NEEDED = {
    'networks': 'torch', 'checkpoints': 'torch', 'inference': 'torch', 'training': 'torch',
    'processing': 'torch', 'policies': 'torch', 'annotation': 'torch', 'simulation': 'mujoco',
    'evaluation': 'mujoco', 'data': 'rosbags', 'ros': 'rclpy',
}  # fmt: skip


@pytest.mark.parametrize('module', sorted(NEVER_LOADED))
def test_importing_loads_nothing_forbidden(module: str) -> None:
    if not importable(f'spear_ros.{module}'):
        pytest.skip(f'spear_ros.{module} does not exist')
    needed = NEEDED.get(module) or NEEDED.get(module.split('.')[0] if 'nodes' in module else '')
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f'{needed} is not installed')
    never = NEVER_LOADED[module]
    result = subprocess.run(
        [sys.executable, '-c', LOAD, f'spear_ros.{module}', never],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads(result.stdout.splitlines()[-1]) == []


# Ceilings, not aims: CONTRIBUTING.md names the aims.
MODULE_LINES = 450
FUNCTION_LINES = 65
POSITIONAL_ARGUMENTS = 6


def test_modules_and_functions_stay_small() -> None:
    large = []
    for _, path in modules():
        source = path.read_text(encoding='utf-8')
        name = path.relative_to(ROOT)
        if len(source.splitlines()) > MODULE_LINES:
            large.append(f'{name}: {len(source.splitlines())} lines')
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            names = [a.arg for a in node.args.posonlyargs + node.args.args]
            count = len([n for n in names if n not in ('self', 'cls')])
            if any(ast.unparse(d) == 'triton.jit' for d in node.decorator_list):
                continue  # a kernel takes its pointers and sizes one by one, and cannot be cut up
            if lines > FUNCTION_LINES or count > POSITIONAL_ARGUMENTS:
                large.append(f'{name}:{node.lineno} {node.name}: {lines} lines, {count} arguments')
    assert not large, '\n' + '\n'.join(large)
