// A mesh in front of its camera: vertex normals, pose and spherical-harmonics light, and their derivatives, in one pass
// each. Vertices sum over their triangles, never triangles into vertices: no sum depends on the number of threads.
#pragma once

#include <cstdint>

namespace mien {

constexpr int kLightNumbers = 27;  // 9 harmonics, 3 channels

// One mesh, and where its triangles meet: the corners of vertex v are corner_of[first_corner[v]] up to first_corner[v + 1];
// corner c is corner c % 3 of triangle c / 3.
struct MeshTopology {
    int vertices, triangles;
    const int32_t* corners;       // T 3
    const int32_t* first_corner;  // V + 1
    const int32_t* corner_of;     // 3 T
};

// Pose and light of one mesh. A point p lies at axes · (scale · rotation p) + translation, where `axes` are signs.
struct Scene {
    float rotation[9], scale, translation[3], light[kLightNumbers];
};

struct SurfaceArrays {
    float* camera;   // V 3, positions in camera space
    float* normals;  // V 3, unit normals in view axes
    float* shading;  // V 3
    float* lengths;  // V, of the sums of the triangles' normals
};

struct SurfaceGradients {
    const float* camera;   // by SurfaceArrays.camera, and so on
    const float* normals;
    const float* shading;
    float* positions;      // V 3
    float* scene;          // by rotation, scale, translation, light, in this order
};

void surface_forward(const MeshTopology& mesh, const float* positions, const Scene& scene, int threads,
                     const SurfaceArrays& out);
void surface_backward(const MeshTopology& mesh, const float* positions, const Scene& scene, const float* normals,
                      const float* lengths, int threads, const SurfaceGradients& gradients);

}  // namespace mien
