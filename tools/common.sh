# common.sh: sourced by tools/quickstart and tools/test. Installs what is missing (Debian, Ubuntu) and builds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need PACKAGE...: apt-get install those that are not there, with sudo where that is needed.
need() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null || die "these packages are needed, and there is no apt-get to install them: ${missing[*]}"
    local sudo=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "these packages are needed (run as root, or install sudo): ${missing[*]}"
        sudo=sudo
    fi
    say "installing ${missing[*]}"
    $sudo apt-get update -qq >/dev/null || true # an unreachable extra repository need not matter
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${missing[@]}" >/dev/null || die "apt-get could not install: ${missing[*]}"
}

need_build() {
    need gcc g++ libc6-dev cmake ninja-build pkg-config git ca-certificates \
        libdnnl-dev libspng-dev libjpeg62-turbo-dev libwebp-dev libutf8proc-dev libjansson-dev libstb-dev zlib1g-dev
}

# build PRESET [TARGET...]
build() {
    local preset=$1 log
    shift
    log=$(mktemp)
    say "building ($preset)"
    if ! { cmake --preset "$preset" && cmake --build --preset "$preset" -j "$(nproc)" ${1:+--target "$@"}; } >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        rm -f "$log"
        die "the $preset build failed"
    fi
    grep -h '^-- klein:' "$log" >&2 || true
    rm -f "$log"
}
