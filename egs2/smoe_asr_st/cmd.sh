# shellcheck shell=bash
# shellcheck disable=SC2034  # read by the script that sources this
# How stages start their commands; sourced by smoe.sh. Choose with cmd_backend=... in
# the environment or here: local, slurm, sge, ssh. Each command is called as
#     ${train_cmd} [options] <log file> <command> [arguments]
# The cluster scripts are ESPnet's own (Kaldi's) and come from ESPNET_ROOT, a checkout
# or the unpacked source package; they read conf/slurm.conf, conf/queue.conf (options
# and partitions) or .queue/machines (ssh).

cmd_backend=${cmd_backend:-local}
cluster=${ESPNET_ROOT:-}/egs2/TEMPLATE/asr1/utils

case ${cmd_backend} in
    local) script=local/run_local.sh ;;
    slurm) script=${cluster}/slurm.pl ;;
    sge) script=${cluster}/queue.pl ;;
    ssh) script=${cluster}/ssh.pl ;;
    *)
        echo "cmd.sh: unknown cmd_backend '${cmd_backend}'; known: local slurm sge ssh" >&2
        exit 1
        ;;
esac
if [ ! -f "${script}" ]; then
    echo "cmd.sh: ${script} is missing; set ESPNET_ROOT to an ESPnet checkout or unpacked source package (now '${ESPNET_ROOT:-}')" >&2
    exit 1
fi

# data preparation and statistics; training; decoding
train_cmd="${script}"
cuda_cmd="${script}"
decode_cmd="${script}"
