#!/usr/bin/env bash
# Print the path of the newest Python 3.12 or 3.13 that works; PYTHON=... overrides.
# A name on PATH proves nothing (version managers put stand-ins there that fail), so
# every candidate is run, with the modules that a virtual environment needs.
set -euo pipefail

probe='import sys, ensurepip, ssl, venv
if (3, 12) <= sys.version_info[:2] < (3, 14):
    print(sys.version_info[1], getattr(sys, "_base_executable", "") or sys.executable)'

if [ -n "${PYTHON:-}" ]; then
    found=$("${PYTHON}" -c "${probe}" 2>/dev/null) || found=
    if [ -z "${found}" ]; then
        echo "find_python.sh: PYTHON=${PYTHON} is not a working Python 3.12 or 3.13 with the modules venv and ensurepip" >&2
        exit 1
    fi
    echo "${found#* }"
    exit 0
fi

shopt -s nullglob
best=0
path=
for candidate in python3.13 python3.12 python3 python \
        "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.1[23]*/bin/python; do
    found=$("${candidate}" -c "${probe}" 2>/dev/null </dev/null) || continue
    if [ "${found%% *}" -gt "${best}" ] 2>/dev/null; then
        best=${found%% *}
        path=${found#* }
    fi
done
if [ -z "${path}" ]; then
    echo "find_python.sh: no working Python found; install Python 3.13 or 3.12 with its venv module (Debian, Ubuntu: apt-get install python3.12-venv), or name one: make install PYTHON=/path/to/python3.12" >&2
    exit 1
fi
echo "${path}"
