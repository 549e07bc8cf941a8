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
    local name=$1 value="" words
    shift
    while [ $# -gt 0 ]; do
        words=1
        case $1 in
            "--${name}="*) value=${1#*=} ;;
            --*=*) ;;
            --*)
                [ "$1" != "--${name}" ] || value=${2:-}
                # the value of another option may look like this one
                [ $# -lt 2 ] || words=2
                ;;
        esac
        shift "${words}"
    done
    echo "${value}"
}

corpus=$(given corpus "$@")
train_config=$(given train_config "$@")
# names the folders of this corpus, so that no other one overwrites them or goes on
# with its model; empty = the plain names data, dump/raw, exp/smoe_stats
corpus_tag=
case ${corpus:=demo} in
    demo)
        default_config=conf/demo/train_smoe.yaml
        choices=(
            --inference_config conf/demo/decode.yaml
            --nbpe 500
        )
        sizes=$(given demo_sizes "$@")
        seed=$(given seed "$@")
        corpus_tag+=${sizes:+_${sizes//[[:space:]]/-}}
        [ "${seed:-0}" = 0 ] || corpus_tag+=_seed${seed}
        if [ -n "${corpus_tag}" ]; then
            corpus_tag=demo${corpus_tag}
        elif [ "${train_config:-${default_config}}" = "${default_config}" ]; then
            # the experiment that the documents call exp/smoe_demo
            choices+=(--model_tag demo)
        fi
        ;;
    *)
        default_config=conf/train_smoe.yaml
        choices=(
            --inference_config conf/decode.yaml
            --nbpe 500
        )
        corpus_tag=${corpus}
        manifest=$(given manifest "$@")
        manifest=${manifest:-${MANIFEST}}
        if [ "${corpus}" = manifest ] && [ -n "${manifest}" ]; then
            stem=$(basename "${manifest}")
            stem=${stem%.*}
            corpus_tag+=_${stem//[[:space:]]/_}
            choices+=(--manifest "${manifest}")
        fi
        # other labels, other utterances
        [ "$(given bandwidth "$@")" != detect ] || corpus_tag+=_detect
        [ "$(given narrowband_twins "$@")" != true ] || corpus_tag+=_twins
        ;;
esac
if [ -n "${corpus_tag}" ]; then
    choices+=(
        --corpus_tag "${corpus_tag}"
        --datadir "data/${corpus_tag}"
        --dumpdir "dump/${corpus_tag}"
    )
fi

./smoe.sh \
    --corpus "${corpus}" \
    --train_set train \
    --valid_set dev \
    --test_sets test \
    --train_config "${default_config}" \
    "${choices[@]}" \
    "$@"
