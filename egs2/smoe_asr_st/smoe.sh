#!/usr/bin/env bash
# The stages of the recipe, with ESPnet's numbers and names (6-9, the language model's,
# are not used). Every stage can be rerun on its own; run.sh gives a corpus's choices.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
SECONDS=0

log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') (smoe.sh) $*"; }

# options
stage=1                # first stage to run
stop_stage=15          # last stage to run
skip_data_prep=false   # skip stages 1-5
skip_train=false       # skip stages 10-11
skip_eval=false        # skip stages 12-13
skip_packing=false     # skip stage 14
skip_upload_hf=true    # skip stage 15
ngpu=0                 # GPUs per node to train on; 0 = CPU; decoding uses one
num_nodes=1            # nodes of the training (cmd_backend slurm or sge)
nj=0                   # processes that prepare data; 0 = one per core
inference_nj=0         # processes that decode on the CPU; 0 = one per core
python=""              # interpreter; empty = .venv of this checkout, else python3
corpus=demo            # demo or manifest
manifest=""            # JSON Lines file of --corpus manifest
demo_sizes=""          # "TRAIN DEV TEST" sentences of the demo corpus
seed=0                 # of the demo corpus
bandwidth=check        # labels by native rate (header), by sound (detect), by rate and compared with sound (check)
narrowband_twins=false # each wideband utterance of a manifest also through a telephone
train_set=train        # name of the training set
valid_set=dev          # name of the validation set
test_sets="test"       # names of the test sets, one or more
datadir=data           # folder of the data directories
dumpdir=dump           # folder of the dumped audio
expdir=exp             # folder of the experiments
speed_perturb_factors="" # e.g. "0.9 1.0 1.1"; empty = no speed perturbation
min_wav_duration=0.1   # shortest utterance to train on, s
max_wav_duration=30.0  # longest utterance to train on, s
nbpe=500               # size of the sentencepiece vocabulary
token_listdir=""       # folder of the token list; empty = <datadir>/token_list/bpe<nbpe>
corpus_tag=""          # corpus in the names of statistics and experiment; empty = none
model_tag=""           # model in the name of the experiment; empty = from train_config
smoe_stats_dir=""      # folder of the statistics; empty = <expdir>/smoe_stats[_<corpus_tag>]
train_config=""        # training YAML
smoe_args=""           # further training options, e.g. "--max_epoch 10"; they win
smoe_tag=""            # name of the experiment; empty = from the tags above and smoe_args
smoe_exp=""            # experiment folder; empty = <expdir>/smoe_<tag>
resume=true            # go on where a killed training stopped
inference_config=""    # decoding YAML
inference_args=""      # further options of smoe_inference
inference_tag=""       # name of the decoding; empty = from inference_config, _args, _model
inference_model=valid.acc.ave.pth # checkpoint to decode with
dry_run=false          # say what would be read and made where, and leave
force_bandwidths=""    # e.g. "nb wb": decode with these guides too, to see what a wrong one costs
hf_repo=""             # user/name on the Hugging Face hub (stage 15)
# end of options

# names say only what differs from these
default_nbpe=${nbpe}
default_model=${inference_model}

. ./local/options.sh
commandline=$(printf '%q ' "$0" "$@")
parse_options "$0" "$@"
log "${commandline}"
. ./path.sh
. ./cmd.sh

die() {
    echo "smoe.sh: $1" >&2
    exit "${2:-1}"
}

# one name for settings that differ: "--max_epoch 3" -> "_max_epoch3"
tag_of_args() {
    local text=${1//--/_}
    text=${text//[[:space:]=]/}
    echo "${text//\//-}"
}

[ -n "${train_config}" ] || die "--train_config is missing" 2
[ -f "${train_config}" ] || die "--train_config ${train_config} does not exist"
[ -n "${inference_config}" ] || die "--inference_config is missing" 2
[ -f "${inference_config}" ] \
    || die "--inference_config ${inference_config} does not exist"
"${python}" -c 'import espnet_smoe' 2>/dev/null \
    || die "${python} cannot import espnet_smoe; run 'make install' at the top of the checkout or name an interpreter with --python"
if [ "${num_nodes}" -gt 1 ] && [[ ${cmd_backend} != slurm && ${cmd_backend} != sge ]]; then
    die "--num_nodes ${num_nodes} needs cmd_backend slurm or sge, got ${cmd_backend}"
fi

# each word once, in order, one a line
unique() {
    local -A seen=()
    local word
    for word in "$@"; do
        [ -n "${seen[${word}]:-}" ] || echo "${word}"
        seen[${word}]=1
    done
}

if [ "${corpus}" = manifest ]; then
    [ -n "${manifest}" ] || die "--corpus manifest needs --manifest FILE" 2
    [ -z "${demo_sizes}" ] && [ "${seed}" -eq 0 ] \
        || die "--demo_sizes and --seed are options of --corpus demo, got --corpus manifest" 2
elif [ -n "${manifest}" ]; then
    die "--manifest ${manifest} needs --corpus manifest, got --corpus ${corpus}" 2
fi

cores=$(getconf _NPROCESSORS_ONLN)
[ "${nj}" -gt 0 ] || nj=${cores}
[ "${inference_nj}" -gt 0 ] || inference_nj=${cores}
decode_gpus=$((ngpu > 0 ? 1 : 0))
read -r -a tests <<<"${test_sets}"
mapfile -t tests < <(unique "${tests[@]}")
mapfile -t sets < <(unique "${train_set}" "${valid_set}" "${tests[@]}")
read -r -a factors <<<"${speed_perturb_factors}"
read -r -a sizes <<<"${demo_sizes}"
read -r -a train_options <<<"${smoe_args}"
read -r -a inference_options <<<"${inference_args}"
read -r -a forced <<<"${force_bandwidths}"
[ ${#tests[@]} -gt 0 ] || die "--test_sets names no set" 2
for dset in "${tests[@]}"; do
    [[ ${dset} != "${train_set}" && ${dset} != "${valid_set}" ]] \
        || die "set '${dset}' of --test_sets is also --train_set or --valid_set: those are filtered by length, test sets are scored whole" 2
done

token_listdir=${token_listdir:-${datadir}/token_list/bpe${nbpe}}
data_tag=
[ "${nbpe}" -eq "${default_nbpe}" ] || data_tag+=_bpe${nbpe}
[ ${#factors[@]} -eq 0 ] || data_tag+=_sp
smoe_stats_dir=${smoe_stats_dir:-${expdir}/smoe_stats${corpus_tag:+_${corpus_tag}}${data_tag}}
if [ -z "${smoe_tag}" ]; then
    smoe_tag=${corpus_tag:+${corpus_tag}_}${model_tag:-$(basename "${train_config}" .yaml)}
    smoe_tag+=$(tag_of_args "${smoe_args}")${data_tag}
fi
smoe_exp=${smoe_exp:-${expdir}/smoe_${smoe_tag}}
if [ -z "${inference_tag}" ]; then
    inference_tag=$(basename "${inference_config}" .yaml)
    [[ ${inference_tag} == decode* ]] || inference_tag=decode_${inference_tag}
    inference_tag+=$(tag_of_args "${inference_args}")
    [ "${inference_model}" = "${default_model}" ] \
        || inference_tag+=_$(basename "${inference_model}" .pth)
fi
decode_dir=${smoe_exp}/${inference_tag}
packed=${smoe_exp}/$(basename "${smoe_exp}").zip

# the set to train on from stage 3: its speed-perturbed copy, if one was asked for
train_dump=${train_set}
[ ${#factors[@]} -eq 0 ] || train_dump=${train_set}_sp
train_dir=${dumpdir}/raw/${train_dump}
valid_dir=${dumpdir}/raw/${valid_set}

if [ "${dry_run}" = true ]; then
    printf '%s\n' "dump=${dumpdir}/raw" "train_dir=${train_dir}" \
        "valid_dir=${valid_dir}" "test_sets=${tests[*]}" "tokens=${token_listdir}" \
        "stats=${smoe_stats_dir}" "experiment=${smoe_exp}" "decoding=${decode_dir}" \
        "inference_config=${inference_config}"
    exit 0
fi

wanted() { [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ]; }

run_stage() {
    local option skip
    case $1 in
        [1-5]) option=skip_data_prep skip=${skip_data_prep} ;;
        10 | 11) option=skip_train skip=${skip_train} ;;
        12 | 13) option=skip_eval skip=${skip_eval} ;;
        14) option=skip_packing skip=${skip_packing} ;;
        15) option=skip_upload_hf skip=${skip_upload_hf} ;;
    esac
    wanted "$1" || return
    if [ "${skip}" = true ]; then
        log "Skipping stage $1: --${option} is true"
        return 1
    fi
}

any=false
for number in 1 2 3 4 5 10 11 12 13 14 15; do
    if wanted "${number}"; then any=true; fi
done
[ "${any}" = true ] \
    || die "--stage ${stage} --stop_stage ${stop_stage} names no stage; there are 1-5 and 10-15" 2

if run_stage 1; then
    log "Stage 1: corpus ${corpus} -> ${datadir}/{${sets[*]}}, report in ${datadir}/survey"
    options=(--corpus "${corpus}" --bandwidth "${bandwidth}" --narrowband_twins "${narrowband_twins}")
    [ -z "${manifest}" ] || options+=(--manifest "${manifest}")
    if [ "${corpus}" = demo ]; then
        options+=(--seed "${seed}")
        [ ${#sizes[@]} -eq 0 ] || options+=(--demo_sizes "${sizes[@]}")
    else
        options+=(--splits "${sets[@]}")
    fi
    "${python}" -m espnet_smoe.bin.smoe_data \
        --datadir "${datadir}" --train_config "${train_config}" --nj "${nj}" \
        "${options[@]}"
fi

if run_stage 2; then
    if [ ${#factors[@]} -eq 0 ]; then
        log "Stage 2: no --speed_perturb_factors, skipped"
    else
        log "Stage 2: speeds ${factors[*]} of ${datadir}/${train_set} -> ${datadir}/${train_dump}"
        "${python}" -m espnet_smoe.bin.smoe_perturb_speed \
            --in_dir "${datadir}/${train_set}" --out_dir "${datadir}/${train_dump}" \
            --factors "${factors[@]}"
    fi
fi

if run_stage 3; then
    log "Stage 3: audio of ${datadir} at 16 kHz -> ${dumpdir}/raw"
    mapfile -t dumped < <(unique "${train_dump}" "${valid_set}" "${tests[@]}")
    for dset in "${dumped[@]}"; do
        # stage 4 filters what is trained on; test sets stay whole
        org=
        [[ ${dset} != "${train_dump}" && ${dset} != "${valid_set}" ]] || org=/org
        ${train_cmd} "${dumpdir}/log/dump_${dset}.log" \
            "${python}" -m espnet_smoe.bin.smoe_dump \
            --in_dir "${datadir}/${dset}" --out_dir "${dumpdir}/raw${org}/${dset}" \
            --nj "${nj}"
    done
fi

if run_stage 4; then
    log "Stage 4: utterances of ${min_wav_duration} to ${max_wav_duration} s of ${dumpdir}/raw/org -> ${dumpdir}/raw"
    for dset in "${train_dump}" "${valid_set}"; do
        "${python}" -m espnet_smoe.bin.smoe_filter \
            --in_dir "${dumpdir}/raw/org/${dset}" --out_dir "${dumpdir}/raw/${dset}" \
            --min_wav_duration "${min_wav_duration}" \
            --max_wav_duration "${max_wav_duration}"
    done
fi

if run_stage 5; then
    log "Stage 5: texts of ${train_dir} -> ${token_listdir}"
    "${python}" -m espnet_smoe.bin.smoe_tokens \
        --train_dir "${train_dir}" --train_config "${train_config}" \
        --nbpe "${nbpe}" --out_dir "${token_listdir}"
fi

train_inputs=(
    --config "${train_config}"
    --train_dir "${train_dir}" --valid_dir "${valid_dir}" --token_dir "${token_listdir}"
)

if run_stage 10; then
    log "Stage 10: statistics of ${train_dir} and ${valid_dir} -> ${smoe_stats_dir}"
    ${train_cmd} "${smoe_stats_dir}.log" \
        "${python}" -m espnet_smoe.bin.smoe_train "${train_inputs[@]}" \
        --output_dir "${smoe_stats_dir}" --collect_stats true "${train_options[@]}"
fi

if run_stage 11; then
    log "Stage 11: ${train_config} on ${train_dir} -> ${smoe_exp}; log: ${smoe_exp}/train.log"
    command=(
        "${python}" -m espnet_smoe.bin.smoe_train "${train_inputs[@]}"
        --stats_dir "${smoe_stats_dir}" --output_dir "${smoe_exp}" --resume "${resume}"
        "${train_options[@]}"
    )
    if [ "${num_nodes}" -gt 1 ]; then
        # the host's launcher adds rank, world size and the number of GPUs
        "${python}" -m espnet2.bin.launch --cmd "${cuda_cmd} --name smoe_${smoe_tag}" \
            --log "${smoe_exp}/train.log" --ngpu "${ngpu}" --num_nodes "${num_nodes}" \
            --init_file_prefix "${smoe_exp}/.dist_init_" -- "${command[@]}"
    else
        [ "${ngpu}" -le 1 ] || command+=(--multiprocessing_distributed true)
        ${cuda_cmd} --gpu "${ngpu}" "${smoe_exp}/train.log" "${command[@]}" --ngpu "${ngpu}"
    fi
fi

# decode test set $1 into ${decode_dir}/$2; options of smoe_inference follow
decode() {
    log "Stage 12: ${dumpdir}/raw/$1 -> ${decode_dir}/$2"
    ${decode_cmd} --gpu "${decode_gpus}" "${decode_dir}/log/${2//\//_}.log" \
        "${python}" -m espnet_smoe.bin.smoe_inference \
        --exp_dir "${smoe_exp}" --data_dir "${dumpdir}/raw/$1" \
        --inference_model "${inference_model}" --config "${inference_config}" \
        --output_dir "${decode_dir}/$2" --ngpu "${decode_gpus}" \
        --nj "${inference_nj}" \
        "${inference_options[@]}" "${@:3}"
}

if run_stage 12; then
    for dset in "${tests[@]}"; do
        # first, for a guide that does not exist is found out then
        for guide in "${forced[@]}"; do
            decode "${dset}" "force_${guide}/${dset}" --force_bandwidth "${guide}"
        done
        decode "${dset}" "${dset}"
    done
fi

if run_stage 13; then
    # a decoding of some tasks is scored on these
    scored=() reading=false
    for word in "${inference_options[@]}"; do
        case ${word} in
            --tasks=*) scored=("${word#*=}") reading=false ;;
            --tasks) scored=() reading=true ;;
            --*) reading=false ;;
            *) if [ "${reading}" = true ]; then scored+=("${word}"); fi ;;
        esac
    done
    [ ${#scored[@]} -eq 0 ] || scored=(--tasks "${scored[@]}")
    log "Stage 13: scores of ${decode_dir} -> ${decode_dir}/{scores.json,RESULTS.md,scores.png}"
    "${python}" -m espnet_smoe.bin.smoe_score \
        --decode_dir "${decode_dir}" --dump_dir "${dumpdir}/raw" --test_sets "${tests[@]}" \
        --force_bandwidths "${forced[@]}" "${scored[@]}"
fi

if run_stage 14; then
    log "Stage 14: ${smoe_exp} -> ${packed}"
    "${python}" -m espnet_smoe.bin.smoe_pack --exp_dir "${smoe_exp}" --out "${packed}" \
        --inference_model "${inference_model}" --inference_config "${inference_config}"
fi

if run_stage 15; then
    log "Stage 15: ${packed} -> ${hf_repo} on the Hugging Face hub"
    [ -n "${hf_repo}" ] || die "--hf_repo user/name is missing" 2
    "${python}" -m espnet_smoe.bin.smoe_upload --packed "${packed}" --hf_repo "${hf_repo}"
fi

log "Finished after ${SECONDS} s"
