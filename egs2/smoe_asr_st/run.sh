#!/usr/bin/env bash
# One English speech recognition and translation model for 8 and 16 kHz recordings.
#   ./run.sh                                         demo corpus, all stages
#   ./run.sh --corpus manifest --manifest my.jsonl   your own data
# Options after these choices win; ./run.sh --help lists them all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./db.sh

# value of option $1 among the arguments after it, the last one if it comes twice
given() {
    local name=$1 value=
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            "--${name}") value=${2:-} ;;
            "--${name}="*) value=${1#*=} ;;
        esac
        shift
    done
    echo "${value}"
}

corpus=$(given corpus "$@")
train_config=$(given train_config "$@")
case ${corpus:=demo} in
    demo)
        default_config=conf/demo/train_smoe.yaml
        choices=(
            --inference_config conf/demo/decode.yaml
            --nbpe 500
        )
        # the experiment that the documents call exp/smoe_demo
        if [ "${train_config:-${default_config}}" = "${default_config}" ]; then
            choices+=(--smoe_tag demo)
        fi
        ;;
    *)
        default_config=conf/train_smoe.yaml
        choices=(
            --inference_config conf/decode.yaml
            --nbpe 500
        )
        if [ -n "${MANIFEST}" ]; then
            choices+=(--manifest "${MANIFEST}")
        fi
        ;;
esac

./smoe.sh \
    --corpus "${corpus}" \
    --train_set train \
    --valid_set dev \
    --test_sets test \
    --train_config "${default_config}" \
    "${choices[@]}" \
    "$@"
