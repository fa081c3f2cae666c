# shellcheck shell=bash
# What the scripts here share: messages, the cache, system packages, and finding PostgreSQL.

set -euo pipefail
umask 022
# Else `cd` goes elsewhere, and says where.
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Majors that may be chosen without being asked, newest first. PG_CONFIG may name an older one.
majors="18 17 16"
supported_majors="15 16 17 18"

say() { printf '== %s\n' "$*" >&2; }
die() { printf 'zodan: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }
can_be_root() { is_root || have sudo; }

# rustup puts cargo on the PATH of login shells only.
have cargo || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

# What is built once for all checkouts. As root the servers run under another account, which has to
# be able to read it: so not below root's home directory.
if is_root; then
    cache=${ZODAN_CACHE:-/var/cache/zodan}
else
    cache=${ZODAN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/zodan}
fi
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

as_root() {
    if is_root; then
        # Without set-up's lock, which a server that a package starts would keep.
        "$@" 9>&-
    elif have sudo; then
        sudo "$@"
    else
        die "this needs root and there is no sudo; run as root: $*"
    fi
}

# --- system packages -----------------------------------------------------------------------------

apt_updated=
apt_update() {
    [ -z "$apt_updated" ] || return 0
    say "Updating the package lists (under a minute)"
    as_root apt-get -q -o DPkg::Lock::Timeout=300 update </dev/null >&2 ||
        say "Some package lists could not be updated"
    apt_updated=yes
}

apt_install() {
    apt_update
    say "Installing $* (a minute or two)"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=300 \
        install --no-install-recommends "$@" </dev/null >&2
}

apt_offers() {
    local package
    for package; do
        LC_ALL=C apt-cache policy "$package" | grep '^ *Candidate: [0-9]' >/dev/null || return 1
    done
}

missing=()
missing_packages=()

# need WHAT PACKAGE COMMAND…: WHAT is missing if COMMAND fails, and PACKAGE has it on Debian.
need() {
    local what=$1 package=$2
    shift 2
    if ! "$@" >/dev/null 2>&1; then
        missing+=("$what")
        case " ${missing_packages[*]} " in *" $package "*) ;; *) missing_packages+=("$package") ;; esac
    fi
}

install_missing() {
    [ ${#missing[@]} -gt 0 ] || return 0
    local list packages=("${missing_packages[@]}")
    list=$(printf ', %s' "${missing[@]}")
    list=${list#, }
    have apt-get || die "missing: $list. Install them with this system's package manager and run this again."
    say "Missing: $list"
    missing=()
    missing_packages=()
    apt_install "${packages[@]}"
}

has_header() { printf '#include <stdio.h>\n#include <%s>\n' "$1" | cc -E -x c - ; }
has_module() { pkg-config --exists "$@"; }
has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] || compgen -G '/usr/lib/llvm*/lib*/libclang.so' ||
        compgen -G '/usr/l*/libclang.so' || compgen -G '/usr/local/lib*/libclang.so'
}

need_build_tools() {
    need "a C compiler and its headers" build-essential has_header stdlib.h
    need make build-essential have make
    need pkg-config pkg-config have pkg-config
    need "libclang and its headers" libclang-dev has_libclang
    need "OpenSSL's headers" libssl-dev has_header openssl/ssl.h
}

need_postgres_sources() {
    need flex flex have flex
    need bison bison have bison
    need perl perl perl -MFile::Find -e 1
    need bzip2 bzip2 have bzip2
    need xz xz-utils have xz
    need "ICU's headers" libicu-dev has_module icu-uc icu-i18n
    need "LZ4's headers" liblz4-dev has_module liblz4
    need "Zstandard's headers" libzstd-dev has_module libzstd
    need "readline's headers" libreadline-dev has_header readline/readline.h
    need "zlib's headers" zlib1g-dev has_header zlib.h
}

# --- PostgreSQL ----------------------------------------------------------------------------------

pg_major() {
    local version
    version=$("$1" --version)
    version=${version#PostgreSQL }
    printf '%s\n' "${version%%[!0-9]*}"
}

# Prints what the installation of this pg_config lacks to build an extension and run servers.
pg_lacks() {
    if ! "$1" --version >/dev/null 2>&1; then
        echo "a working pg_config"
    elif [ ! -f "$("$1" --includedir-server)/postgres.h" ]; then
        echo "the server headers"
    elif ! compgen -G "$("$1" --libdir)/libpq.*" >/dev/null; then
        echo "libpq"
    elif [ ! -x "$("$1" --bindir)/postgres" ] || [ ! -x "$("$1" --bindir)/initdb" ]; then
        echo "the server programs"
    fi
}

# The pg_config beside the programs: the one on the PATH may be a wrapper that chooses one.
real_pg_config() {
    local real
    real=$("$1" --bindir)/pg_config
    if [ -x "$real" ]; then echo "$real"; else realpath -s "$1"; fi
}

# Prints the pg_config to use, or fails if there is none yet.
find_pg() {
    local candidate lacks major
    if [ -n "${PG_CONFIG:-}" ]; then
        candidate=$(command -v "$PG_CONFIG") || die "PG_CONFIG=$PG_CONFIG: no such program"
        lacks=$(pg_lacks "$candidate")
        [ -z "$lacks" ] || die "PG_CONFIG=$PG_CONFIG: this PostgreSQL lacks $lacks"
        case " $supported_majors " in
        *" $(pg_major "$candidate") "*) ;;
        *) die "PG_CONFIG=$PG_CONFIG is $("$candidate" --version); supported are $supported_majors" ;;
        esac
        real_pg_config "$candidate"
        return
    fi
    for major in $majors; do
        for candidate in "$(command -v pg_config || true)" "/usr/lib/postgresql/$major/bin/pg_config" \
            "/usr/pgsql-$major/bin/pg_config" /usr/local/pgsql/bin/pg_config; do
            if [ -x "$candidate" ] && [ -z "$(pg_lacks "$candidate")" ] &&
                [ "$(pg_major "$candidate")" = "$major" ]; then
                real_pg_config "$candidate"
                return
            fi
        done
    done
    for major in $majors; do
        for candidate in "$cache/postgresql-$major/bin/pg_config" \
            "$cache/pgrx/$major".*/pgrx-install/bin/pg_config; do
            if [ -x "$candidate" ] && [ -z "$(pg_lacks "$candidate")" ]; then
                echo "$candidate"
                return
            fi
        done
    done
    return 1
}

# --- cargo-pgrx ----------------------------------------------------------------------------------

# The version Cargo.toml pins pgrx to: they must be the same.
pgrx_version=$(sed -nE 's/^pgrx *=.*"=([0-9.]+)".*/\1/p' Cargo.toml)
cached_cargo_pgrx=$cache/cargo-pgrx-$pgrx_version/bin/cargo-pgrx

# Prints the cargo-pgrx to use, or fails if there is none yet.
find_cargo_pgrx() {
    local candidate
    for candidate in "$(command -v cargo-pgrx || true)" "$cached_cargo_pgrx"; do
        if [ -x "$candidate" ] && [ "$("$candidate" pgrx --version)" = "cargo-pgrx $pgrx_version" ]; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

install_cargo_pgrx() {
    local root=${cached_cargo_pgrx%/bin/*}
    say "Installing cargo-pgrx $pgrx_version into $root (2 to 5 minutes, once)"
    # It is not waited for: optimizing it takes longer than it would save.
    cargo install -q --debug cargo-pgrx --version "=$pgrx_version" --locked --root "$root" 9>&-
}

# --- the account of the servers ------------------------------------------------------------------

# PostgreSQL refuses to run as root. Prints the account that runs the servers in root's place.
server_account() {
    if [ -n "${ZODAN_PG_USER:-}" ]; then
        echo "$ZODAN_PG_USER"
    elif getent passwd postgres >/dev/null; then
        echo postgres
    else
        echo zodan-lab
    fi
}
