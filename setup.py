"""Build file for colcon (ament_python) and pip; package.xml is the single source of the metadata.

The robot side needs numpy, yaml and OpenCV alone. Everything else is an extra, named after what it
is for; versions stand in ``requirements/constraints.txt``.
"""

from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

manifest = ElementTree.parse('package.xml').getroot()
name = manifest.findtext('name')

POLICY = ['torch', 'safetensors', 'tokenizers']
EXTRAS = {
    'policy': POLICY,
    'sim': ['mujoco>=4', 'rtb-data'],
    'bag': ['rosbags>=0.11', 'lz4'],
    'convert': [*POLICY, 'transformers', 'sentencepiece'],
    'train': [*POLICY, 'pyarrow', 'av', 'matplotlib'],
    'annotate': ['transformers', 'google-genai', 'scipy', 'pyarrow', 'pillow'],
    'annotate-ray': ['ray[data]>=2.50'],
    'viz': ['matplotlib', 'av'],
    'test': [
        'pytest>=9', 'hypothesis', 'ruff', 'mypy', 'types-PyYAML', 'scipy',
        'colcon-common-extensions',
    ],
}  # fmt: skip
NODES = ['policy_node', 'executor_node', 'sim_robot_node', 'recorder_node', 'replay_node']


def share_tree(folder: str) -> list[tuple[str, list[str]]]:
    """Return data_files entries that install every file under ``folder`` into share/<name>/."""
    by_parent: dict[str, list[str]] = {}
    for path in sorted(p for p in Path(folder).rglob('*') if p.is_file()):
        if '__pycache__' not in path.parts:
            by_parent.setdefault(f'share/{name}/{path.parent}', []).append(str(path))
    return list(by_parent.items())


setup(
    name=name,
    version=manifest.findtext('version'),
    description=manifest.findtext('description').strip(),
    license=manifest.findtext('license'),
    maintainer=manifest.findtext('maintainer'),
    maintainer_email=manifest.find('maintainer').get('email'),
    packages=find_packages(include=[name, f'{name}.*']),
    package_data={name: ['py.typed']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{name}']),
        (f'share/{name}', ['package.xml']),
        *share_tree('launch'),
        *share_tree('config'),
        *share_tree('models'),
    ],
    python_requires='>=3.11,<3.14',
    install_requires=['numpy', 'pyyaml', 'opencv-python-headless'],
    extras_require=EXTRAS,
    entry_points={
        'console_scripts': [
            f'spear = {name}.cli.main:main',
            *(f'{node} = {name}.ros.nodes.{node}:main' for node in NODES),
        ]
    },
    zip_safe=False,
)
