#!/bin/sh
# Copies programs and the shared libraries that they need to a folder, for a machine without our packages:
#   scripts/bundle.sh DIR PROGRAM...
# libc and NVIDIA's libraries (CUDA, cuBLAS) are not copied: the target machine must have them. The folder also gets the
# scripts, the model and the vectors that scripts/gpu_check.sh needs. On the target machine, run
# DIR/scripts/gpu_check.sh DIR. Prints the size of the folder.
set -eu
[ $# -ge 2 ] || { echo "usage: bundle.sh DIR PROGRAM..." >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
dir=$1
shift
mkdir -p "$dir/lib" "$dir/scripts" "$dir/models" "$dir/engine/test"
for p in "$@"; do
    cp "$p" "$dir/"
    strip "$dir/$(basename "$p")"
    ldd "$p" | awk '$3 ~ /^\// { print $3 }' | while read -r lib; do
        case "$(basename "$lib")" in
        libc.so*|libm.so*|libdl.so*|librt.so*|libpthread.so*|libresolv.so*|ld-linux*) ;;
        libcuda.so*|libcudart.so*|libcublas*|libnv*) ;;
        *) cp -L "$lib" "$dir/lib/" && chmod 644 "$dir/lib/$(basename "$lib")" ;;
        esac
    done
done
strip "$dir"/lib/*.so* 2>/dev/null || true
cp "$here"/scripts/gpu_check.sh "$here"/scripts/*.py "$dir/scripts/"
cp -r "$here"/models/qwen3-tiny-lm "$dir/models/"
cp "$here"/engine/test/golden-qwen3-tiny-lm.json "$dir/engine/test/"
du -sh "$dir" | cut -f1
