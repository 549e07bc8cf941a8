#!/usr/bin/env bash
# Run a command on this machine: run_local.sh [options] <log file> <command> [arguments]
# Called like the cluster scripts, so their options are accepted and have no effect.
# What the command says goes to the log and to standard error; the log of an earlier
# run is kept above it. Returns the status of the command.
set -uo pipefail

while [ $# -gt 0 ]; do
    case $1 in
        --*) shift 2 || break ;;
        *) break ;;
    esac
done
if [ $# -lt 2 ]; then
    echo "run_local.sh: expected [--option value ...] <log file> <command>" >&2
    exit 2
fi
log=$1
shift
mkdir -p "$(dirname "${log}")" || exit 1
SECONDS=0
printf '# %s\n# Started at %s\n' "$*" "$(date)" >>"${log}" || exit 1
"$@" </dev/null 2>&1 | tee -a "${log}" >&2
status=${PIPESTATUS[0]}
printf '# Ended (code %s) at %s after %s s\n\n' "${status}" "$(date)" "${SECONDS}" >>"${log}"
if [ "${status}" -ne 0 ]; then
    echo "run_local.sh: status ${status}; log: ${log}" >&2
fi
exit "${status}"
