# shellcheck shell=bash
# Environment of the stages; sourced by smoe.sh in the folder of the recipe.

if [ -z "${python}" ]; then
    if [ -x ../../.venv/bin/python ]; then
        python=../../.venv/bin/python
    else
        python=python3
    fi
fi
export LC_ALL=C.UTF-8
export PYTHONIOENCODING=UTF-8
# one thread a process: the stages run several processes, and small matrices gain
# nothing from more
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
