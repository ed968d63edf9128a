// Normals of a mesh under morph targets, for the export of GLB files.
#pragma once

#include <cstdint>

namespace mien {

// The mesh without morph targets.
struct MorphMesh {
    const float* positions;    // V 3
    const float* normals;      // V 3, unit vectors
    const int32_t* triangles;  // T 3
    int64_t vertices, count;   // V and T
};

// For each of N targets, the vertices that move, in ascending order: those of target n are starts[n] … starts[n + 1].
template <typename Start, typename Row, typename Value>
struct MorphRows {
    Start* starts;  // N + 1
    Row* rows;      // K
    Value* values;  // K 3
};

// Turn the offsets of positions into those of unit normals at full weight. An offset whose components are all at most
// `epsilon` is left out. `turned` has room for all vertices of all targets; a target alone costs what it moves.
void morph_normals(const MorphMesh& mesh, const MorphRows<const int64_t, const int32_t, const float>& moved, int64_t targets,
                   float epsilon, const MorphRows<int64_t, int32_t, float>& turned);

}  // namespace mien
