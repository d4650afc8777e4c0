#!/bin/bash -eu
# Builds every target as OSS-Fuzz and ClusterFuzzLite ask for it. They set: CC, CXX, CFLAGS, CXXFLAGS,
# LIB_FUZZING_ENGINE (what to link with), SRC (sources are in $SRC/pmr_debug), WORK, OUT (what they take away).

build=${WORK:-/tmp/work}/pmr_debug
cmake -S "$SRC/pmr_debug" -B "$build" -G Ninja \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DPMR_DEBUG_BUILD_FUZZERS=ON \
    -DPMR_DEBUG_FUZZ_ENGINE="$LIB_FUZZING_ENGINE" \
    -DPMR_DEBUG_FETCH_DEPS="${PMR_DEBUG_FETCH_DEPS:-OFF}" \
    -DPMR_DEBUG_INSTALL=OFF
cmake --build "$build" --target fuzzers --parallel "${FUZZ_JOBS:-$(nproc)}"

for source in "$SRC"/pmr_debug/fuzz/targets/*.cpp; do
    name=$(basename "$source" .cpp)
    cp "$build/fuzz/fuzz_$name" "$OUT/"
    # A zip of inputs to begin with.
    corpus=("$SRC/pmr_debug/fuzz/corpus/$name"/* "$SRC/pmr_debug/fuzz/regressions/$name"/*)
    files=()
    for file in "${corpus[@]}"; do
        [ -f "$file" ] && files+=("$file")
    done
    if [ ${#files[@]} -gt 0 ] && command -v zip >/dev/null; then
        zip -q -j "$OUT/fuzz_${name}_seed_corpus.zip" "${files[@]}"
    fi
done
