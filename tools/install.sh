#!/usr/bin/env bash
# Make .venv with this checkout and all it needs; at once when that is already there.
# Environment: PYTHON (interpreter), TORCH_INDEX_URL (index of a CPU or CUDA build).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# .venv/installed, written last, says for which setup.py and which folder it was made
stamp=.venv/installed
key="$(pwd -P) $(cksum <setup.py)"
prefix='import sys; print(sys.base_prefix, *sys.version_info[:2])'

is_usable() {
    local have
    [ -f "${stamp}" ] && [ "$(head -n 1 "${stamp}")" = "$(pwd -P)" ] || return 1
    have=$(.venv/bin/python -c "${prefix}" 2>/dev/null) || return 1
    [ -z "${PYTHON:-}" ] || [ "${have}" = "$("${PYTHON}" -c "${prefix}" 2>/dev/null)" ]
}

if is_usable && [ "$(tail -n 1 "${stamp}")" = "${key}" ]; then
    exit 0
fi
if ! is_usable; then
    # also what an interrupted installation left: half a package is worse than none
    python=$(tools/find_python.sh)
    echo "install.sh: making .venv with ${python}"
    rm -rf .venv
    "${python}" -m venv .venv
fi
rm -f "${stamp}"
if [ -n "${TORCH_INDEX_URL:-}" ]; then
    # the versions that ESPnet 202611 accepts, from the index asked for
    .venv/bin/python -m pip install --index-url "${TORCH_INDEX_URL}" \
        'torch>=2.11,<2.15,!=2.12.0,!=2.12.1' 'torchaudio>=2.11,<2.12'
fi
.venv/bin/python -m pip install -e '.[corpus,test]'
printf '%s\n%s\n' "$(pwd -P)" "${key}" >"${stamp}.tmp"
mv "${stamp}.tmp" "${stamp}"
