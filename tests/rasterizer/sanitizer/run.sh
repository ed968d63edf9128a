#!/bin/sh
# Builds the kernels with AddressSanitizer and UndefinedBehaviorSanitizer and runs random meshes through them.
# x86 only, as it names the instruction sets itself. Usage: tests/rasterizer/sanitizer/run.sh [rounds]
set -e
here=$(cd "$(dirname "$0")" && pwd)
sources=$here/../../../src/mien/rasterizer/csrc
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
flags="-std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -ffp-contract=fast -Wno-psabi -I$sources"
${CXX:-c++} $flags -DMIEN_ISA=sse2 -c "$sources/kernels.cpp" -o "$build/sse2.o"
${CXX:-c++} $flags -DMIEN_ISA=avx2 -mavx2 -mfma -c "$sources/kernels.cpp" -o "$build/avx2.o"
${CXX:-c++} $flags -DMIEN_ISA=avx512 -mavx512f -mavx512dq -mavx512bw -mavx512vl -mavx2 -mfma -c "$sources/kernels.cpp" -o "$build/avx512.o"
${CXX:-c++} $flags "$here/fuzz.cpp" "$sources/soft_raster.cpp" "$build"/*.o -lpthread -o "$build/fuzz"
"$build/fuzz" "${1:-300}"
