# shellcheck shell=bash
# Where corpora lie on this machine; sourced by run.sh.

# JSON Lines file of --corpus manifest, unless --manifest names one
MANIFEST=${MANIFEST:-}
