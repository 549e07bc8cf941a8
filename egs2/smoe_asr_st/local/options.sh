# shellcheck shell=bash
# Options of a script from its own list; sourced, then: parse_options "$0" "$@"
#
# The list is the block of lines `name=default  # meaning` between the lines
# `# options` and `# end of options` of the script. Both `--name value` and
# `--name=value` set the variable. A default that is a whole number, a number with a
# decimal point or true/false asks for the same kind of value, a whole number being a
# number too. --help shows as defaults what the options before it have set. Wrong usage:
# one line on standard error, status 2.

parse_options() {
    local script=$1 line name value inside=false
    local -A defaults=()
    local -a help=()
    shift
    while IFS= read -r line; do
        case ${line} in
            "# options") inside=true ;;
            "# end of options") break ;;
            *)
                if [ "${inside}" = true ] && [[ ${line} =~ ^([a-z_]+)=([^#]*[^ ])?\ +#\ (.*)$ ]]; then
                    name=${BASH_REMATCH[1]}
                    value=${BASH_REMATCH[2]}
                    value=${value%\"}
                    defaults[${name}]=${value#\"}
                    help+=("${name}" "${BASH_REMATCH[3]}")
                fi
                ;;
        esac
    done <"${script}"

    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h)
                echo "Usage: ${script} [--option value ...]"
                set -- "${help[@]}"
                while [ $# -gt 0 ]; do
                    value=${!1}
                    printf '  --%-20s %s%s\n' "$1" "$2" "${value:+ (default: ${value})}"
                    shift 2
                done
                exit 0
                ;;
            --*=*)
                name=${1%%=*}
                name=${name#--}
                value=${1#*=}
                shift
                _is_known
                ;;
            --*)
                name=${1#--}
                _is_known
                # only options for other programs have values that look like options
                if [ $# -lt 2 ] || { [[ $2 == --* ]] && [[ ${name} != *_args ]]; }; then
                    _wrong_usage "option --${name} needs a value"
                fi
                value=$2
                shift 2
                ;;
            *) _wrong_usage "unexpected argument '$1'" ;;
        esac
        case ${defaults[${name}]} in
            true | false)
                [[ ${value} =~ ^(true|false)$ ]] \
                    || _wrong_usage "option --${name} must be true or false, got '${value}'"
                ;;
            *)
                if [[ ${defaults[${name}]} =~ ^[0-9]+$ ]] && ! [[ ${value} =~ ^[0-9]+$ ]]; then
                    _wrong_usage "option --${name} must be a whole number, got '${value}'"
                fi
                if [[ ${defaults[${name}]} =~ ^[0-9]+\.[0-9]+$ ]] \
                    && ! [[ ${value} =~ ^[0-9]+(\.[0-9]+)?$ ]]; then
                    _wrong_usage "option --${name} must be a number like ${defaults[${name}]}, got '${value}'"
                fi
                ;;
        esac
        printf -v "${name}" '%s' "${value}"
    done
}

# both see the local variables of parse_options
_is_known() {
    if ! [[ ${name} =~ ^[a-z_]+$ ]] || [ -z "${defaults[${name}]+set}" ]; then
        _wrong_usage "unknown option --${name}; --help lists the known ones"
    fi
}

_wrong_usage() {
    echo "$(basename "${script}"): $1" >&2
    exit 2
}
