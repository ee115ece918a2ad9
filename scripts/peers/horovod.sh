# Source this after scripts/lib/setup.sh: builds Horovod for scripts/compare_peers.

HOROVOD=0.28.1
HOROVOD_MINUTES=10 # most time for the build; on two cores it takes two

# From source, as there is no wheel, and with C++17, which torch's headers need. With MPI alone: that of the environment.
# Where it cannot be built the reason is left in $1/horovod.txt, and it is not tried again for the same torch.
install_horovod() { # environment below $ROOT
    local env="$ROOT/$1" work key
    key="horovod $HOROVOD, $TORCH"
    if [ "$(cat "$env/.horovod" 2>/dev/null)" = "$key" ]; then return; fi
    say "building Horovod $HOROVOD into $1; some minutes"
    work=$(mktemp -d)
    rm -f "$env/horovod.txt"
    build_horovod "$env" "$work" >"$work/log" 2>&1 || {
        echo "Horovod $HOROVOD could not be built: $(grep -im1 'error' "$work/log" || tail -n 1 "$work/log")" |
            tee "$env/horovod.txt" >&2
        cp "$work/log" "$env/horovod.log"
    }
    rm -rf "$work"
    echo "$key" >"$env/.horovod"
}

build_horovod() ( # environment, folder to work in
    set -e
    export PATH="$1/bin:$PATH" MAKEFLAGS="-j$(nproc)"
    export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_MPI=1 HOROVOD_CPU_OPERATIONS=MPI
    export HOROVOD_WITHOUT_GLOO=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
    pip install -q packaging cloudpickle psutil pyyaml
    pip download -q --no-deps --no-binary :all: --no-build-isolation -d "$2" "horovod==$HOROVOD"
    tar xf "$2"/horovod-*.tar.gz -C "$2" && cd "$2/horovod-$HOROVOD"
    sed -i 's/CMAKE_CXX_STANDARD 14/CMAKE_CXX_STANDARD 17/' CMakeLists.txt horovod/torch/CMakeLists.txt
    timeout "${HOROVOD_MINUTES}m" pip install --no-deps --no-build-isolation -v .
)
