"""How close are the networks to their oracles? Runs the parity tests and tabulates what they saw.

    python benchmarks/parity_table.py

Oracles are transformers' SigLIP, DINOv2, Gemma, PaliGemma and PI0 with small random weights, and
MoGe-1's published vectors where they are at hand. float32: largest difference over the largest
value (vectors: largest absolute difference). bfloat16: our error to the float32 oracle over the
oracle's own in bfloat16. Prints one JSON object in the last line.
"""

import json
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ('siglip', 'moge', 'moge_head', 'gemma', 'spear_vlm', 'spear1')


def run_tests(report):
    files = [str(ROOT / f'test/networks/test_{name}.py') for name in TESTS]
    command = [
        sys.executable,
        '-m',
        'pytest',
        '-q',
        '-p',
        'no:cacheprovider',
        '-o',
        'junit_family=xunit1',
    ]
    return subprocess.run([*command, f'--junitxml={report}', *files], cwd=ROOT).returncode


def read(report):
    """Worst value of each kind per test function (parametrised cases joined)."""
    worst = {}
    for case in ElementTree.parse(report).iter('testcase'):
        module = case.get('classname', '').rsplit('.', 1)[-1].removeprefix('test_')
        name = (module, case.get('name', '').split('[')[0].removeprefix('test_'))
        for item in case.iter('property'):
            values = worst.setdefault(name, {})
            kind, value = item.get('name'), float(item.get('value'))
            values[kind] = max(value, values.get(kind, 0.0))
    return worst


def main():
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.xml'
        code = run_tests(report)
        worst = read(report)
    print('| part | test | kind | worst |\n|---|---|---|---|')
    for (module, name), values in worst.items():
        for kind, value in values.items():
            print(f'| {module} | {name.replace("_", " ")} | {kind} | {value:.2g} |')
    rows = {f'{module}.{name}': values for (module, name), values in worst.items()}
    print(
        json.dumps(
            {
                'benchmark': 'parity_table',
                'exit_code': code,
                'worst': rows,
                'python': platform.python_version(),
            }
        )
    )
    return code


if __name__ == '__main__':
    sys.exit(main())
