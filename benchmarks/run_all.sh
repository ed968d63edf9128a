#!/bin/sh
# The tables of docs/benchmarks.md but those of scans (mien evaluate scans), and those of what hides a face and of quality flags in
# docs/perception.md: benchmarks/run_all.sh DATA [OUT]. DATA is the folder with photos_68, photos_ccby, portraits_pd, demo, field and
# ict_facekit.npz; PYTHON chooses the interpreter.
set -eu
data=${1:?usage: benchmarks/run_all.sh DATA [OUT]}
out=${2:-out/benchmarks}
here=$(dirname "$0")
python=${PYTHON:-python}
failed=0
mkdir -p "$out"

measure() {
    name=$1
    shift
    echo "== $name" >&2
    if ! "$python" "$here/$name.py" --data "$data" --json "$out/$name.json" "$@" > "$out/$name.md"; then
        echo "$name did not finish, or some photos failed" >&2
        failed=1
    fi
    cat "$out/$name.md"
}

measure reconstruct
measure shape --heads --out "$out/shape" --profiles "$here/../docs/images/shape_profiles.png" --jobs 2
measure landmarks --jobs 2
measure lids --jobs 2
measure likeness --skip-rank-one --jobs 2
measure perspective --jobs 2
measure crops --jobs 2
measure detail --faces 4 --mode net --jobs 2
measure seams --limit 48 --jobs 2
measure occluders --jobs 2
measure quality --jobs 2
exit $failed
