#!/usr/bin/env bash
# ziglang 0.17.1 (PyPI), C compiler `zig cc`, x86-64 Linux.
#
# __builtin_cpu_supports() answers 0 for every feature, SSE2 included, which every x86-64 processor has. The program links
# (0.16.0 failed with an undefined symbol), __builtin_cpu_init() succeeds, and __cpu_model stays all zero.
# Expected: 1 for "sse2"; GCC and Clang give 1.
# Consequence: a library that chooses its kernels at run time is built without an error and always takes the slowest ones.
# Seen on 2026-11-29 for the targets x86_64-linux-gnu and x86_64-linux-musl, at -O0, -O2 and -O3.
# Exit status: 0 while the behaviour is as described, 1 when it changes, 77 on another kind of machine.
set -euo pipefail
[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || { echo "needs Linux on x86-64"; exit 77; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > features.c <<'EOF'
#include <stdio.h>

extern unsigned __cpu_model[4];

int main(void) {
    __builtin_cpu_init();
    printf("sse2 %d, model %x %x %x %x\n", __builtin_cpu_supports("sse2") != 0, __cpu_model[0], __cpu_model[1],
           __cpu_model[2], __cpu_model[3]);
    return 0;
}
EOF

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ziglang==0.17.1
for target in x86_64-linux-gnu x86_64-linux-musl; do
    venv/bin/python -m ziglang cc -O2 -target "$target" features.c -o features
    seen=$(./features)
    echo "ziglang $(venv/bin/python -m ziglang version), $target: $seen"
    [ "$seen" = "sse2 0, model 0 0 0 0" ] || { echo "the behaviour has changed"; exit 1; }
done
