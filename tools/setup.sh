#!/bin/sh
# Finds a Python that can run the set-up and hands over to tools/bootstrap.py. Plain sh, because this
# is the one step that must work before anything is known about the machine.
# PYTHON=/path/to/python chooses the interpreter by hand.
here=$(cd "$(dirname "$0")" && pwd)
fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
for candidate in ${PYTHON:-"$(cat "$here/../.venv/.spear/python" 2>/dev/null)" python3 python3.12 python3.11 python3.13}; do
    if [ -n "$candidate" ] && "$candidate" -c "$fits" 2>/dev/null; then
        exec "$candidate" -B "$here/bootstrap.py" "$@"
    fi
done
if [ -n "$PYTHON" ]; then
    echo "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13 that runs; name another or leave PYTHON unset." >&2
else
    echo "No Python 3.11, 3.12 or 3.13 was found; install one (sudo apt-get install -y python3 python3-dev python3-venv) or name it with PYTHON=/path/to/python." >&2
fi
exit 2
