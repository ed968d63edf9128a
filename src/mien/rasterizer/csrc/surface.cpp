#include "surface.hpp"

#include <cmath>
#include <vector>

#include "parallel.hpp"

namespace mien {
namespace {

constexpr float kAxes[3] = {1, -1, -1};  // camera.CAMERA_FROM_MODEL
constexpr int kChunk = 1024;             // vertices or triangles per task: fixed, like the order of the sums
constexpr float kNoLength = 1e-12f;
constexpr int kSceneNumbers = 9 + 1 + 3 + kLightNumbers;

struct Vector {
    float x, y, z;
};

Vector operator+(Vector a, Vector b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
Vector operator-(Vector a, Vector b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
Vector operator*(float s, Vector a) { return {s * a.x, s * a.y, s * a.z}; }
float dot(Vector a, Vector b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
Vector cross(Vector a, Vector b) { return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x}; }

Vector get(const float* values, int64_t k) { return {values[3 * k], values[3 * k + 1], values[3 * k + 2]}; }
void set(float* values, int64_t k, Vector v) { values[3 * k] = v.x, values[3 * k + 1] = v.y, values[3 * k + 2] = v.z; }

Vector rotated(const float* r, Vector v) {
    return {dot({r[0], r[1], r[2]}, v), dot({r[3], r[4], r[5]}, v), dot({r[6], r[7], r[8]}, v)};
}
Vector rotated_back(const float* r, Vector v) {
    return {dot({r[0], r[3], r[6]}, v), dot({r[1], r[4], r[7]}, v), dot({r[2], r[5], r[8]}, v)};
}
Vector with_axes(Vector v) { return {kAxes[0] * v.x, kAxes[1] * v.y, kAxes[2] * v.z}; }

// The constants of lighting.py.
const float kLinear = 2.0 / 3 * std::sqrt(3.0), kQuadratic = std::sqrt(15.0) / 4, kZonal = std::sqrt(5.0) / 8,
            kSectoral = std::sqrt(15.0) / 8;

void harmonics(Vector n, float* value) {
    const float all[9] = {1, kLinear * n.y, kLinear * n.z, kLinear * n.x, kQuadratic * n.x * n.y, kQuadratic * n.y * n.z,
                          kZonal * (3 * n.z * n.z - 1), kQuadratic * n.x * n.z, kSectoral * (n.x * n.x - n.y * n.y)};
    for (int k = 0; k < 9; ++k) value[k] = all[k];
}

// Σ factor[k] · gradient of harmonic k.
Vector harmonics_gradient(Vector n, const float* factor) {
    return {kLinear * factor[3] + kQuadratic * (factor[4] * n.y + factor[7] * n.z) + 2 * kSectoral * factor[8] * n.x,
            kLinear * factor[1] + kQuadratic * (factor[4] * n.x + factor[5] * n.z) - 2 * kSectoral * factor[8] * n.y,
            kLinear * factor[2] + kQuadratic * (factor[5] * n.y + factor[7] * n.x) + 6 * kZonal * factor[6] * n.z};
}

int tasks_of(int items) { return (items + kChunk - 1) / kChunk; }

template <typename Body>
void for_each(Team& team, int items, const Body& body) {
    team.parallel_for(tasks_of(items), [&](int task, int) {
        for (int k = task * kChunk; k < std::min(items, (task + 1) * kChunk); ++k) body(k, task);
    });
}

struct Edges {
    Vector first, second;  // from corner 0 to corners 1 and 2
};
Edges edges_of(const MeshTopology& mesh, const float* positions, int triangle) {
    const int32_t* const corner = mesh.corners + 3 * int64_t(triangle);
    const Vector start = get(positions, corner[0]);
    return {get(positions, corner[1]) - start, get(positions, corner[2]) - start};
}

}  // namespace

void surface_forward(const MeshTopology& mesh, const float* positions, const Scene& scene, int threads,
                     const SurfaceArrays& out) {
    std::vector<Vector> products(mesh.triangles);
    Team::run(threads, [&](Team& team) {
        for_each(team, mesh.triangles, [&](int k, int) {
            const Edges edges = edges_of(mesh, positions, k);
            products[k] = cross(edges.first, edges.second);
        });
        for_each(team, mesh.vertices, [&](int k, int) {
            Vector sum = {0, 0, 0};
            for (int c = mesh.first_corner[k]; c < mesh.first_corner[k + 1]; ++c)
                sum = sum + products[mesh.corner_of[c] / 3];
            out.lengths[k] = std::sqrt(dot(sum, sum));
            const Vector normal = rotated(scene.rotation, (1 / std::max(out.lengths[k], kNoLength)) * sum);
            set(out.normals, k, normal);
            const Vector place = with_axes(scene.scale * rotated(scene.rotation, get(positions, k)));
            set(out.camera, k, place + get(scene.translation, 0));
            float value[9];
            harmonics(normal, value);
            Vector shading = {0, 0, 0};
            for (int h = 0; h < 9; ++h) shading = shading + value[h] * get(scene.light, h);
            set(out.shading, k, shading);
        });
    });
}

void surface_backward(const MeshTopology& mesh, const float* positions, const Scene& scene, const float* normals,
                      const float* lengths, int threads, const SurfaceGradients& gradients) {
    std::vector<Vector> by_sum(mesh.vertices), by_first(mesh.triangles), by_second(mesh.triangles);
    std::vector<double> parts(size_t(tasks_of(mesh.vertices)) * kSceneNumbers);
    Team::run(threads, [&](Team& team) {
        for_each(team, mesh.vertices, [&](int k, int task) {
            double* const part = parts.data() + size_t(task) * kSceneNumbers;
            const Vector normal = get(normals, k), by_shading = get(gradients.shading, k);
            float value[9], factor[9];
            harmonics(normal, value);
            for (int h = 0; h < 9; ++h) {
                factor[h] = dot(get(scene.light, h), by_shading);
                part[13 + 3 * h] += value[h] * by_shading.x;
                part[14 + 3 * h] += value[h] * by_shading.y;
                part[15 + 3 * h] += value[h] * by_shading.z;
            }
            const Vector by_view = get(gradients.normals, k) + harmonics_gradient(normal, factor);
            const Vector by_camera = get(gradients.camera, k), by_place = with_axes(by_camera);
            const Vector in_model = rotated_back(scene.rotation, normal), position = get(positions, k);
            const float left[2][3] = {{by_view.x, by_view.y, by_view.z}, {by_place.x, by_place.y, by_place.z}};
            const float right[2][3] = {{in_model.x, in_model.y, in_model.z}, {position.x, position.y, position.z}};
            for (int i = 0; i < 9; ++i)
                part[i] += left[0][i / 3] * right[0][i % 3] + scene.scale * left[1][i / 3] * right[1][i % 3];
            part[9] += dot(by_place, rotated(scene.rotation, position));
            part[10] += by_camera.x, part[11] += by_camera.y, part[12] += by_camera.z;
            const float inverse = lengths[k] > kNoLength ? 1 / lengths[k] : 0;
            by_sum[k] = inverse * rotated_back(scene.rotation, by_view - dot(normal, by_view) * normal);
        });
        for_each(team, mesh.triangles, [&](int k, int) {
            const int32_t* const corner = mesh.corners + 3 * int64_t(k);
            const Vector by_product = by_sum[corner[0]] + by_sum[corner[1]] + by_sum[corner[2]];
            const Edges edges = edges_of(mesh, positions, k);
            by_first[k] = cross(edges.second, by_product);
            by_second[k] = cross(by_product, edges.first);
        });
        for_each(team, mesh.vertices, [&](int k, int) {
            Vector sum = scene.scale * rotated_back(scene.rotation, with_axes(get(gradients.camera, k)));
            for (int c = mesh.first_corner[k]; c < mesh.first_corner[k + 1]; ++c) {
                const int triangle = mesh.corner_of[c] / 3, corner = mesh.corner_of[c] % 3;
                if (corner == 0) sum = sum - (by_first[triangle] + by_second[triangle]);
                else sum = sum + (corner == 1 ? by_first[triangle] : by_second[triangle]);
            }
            set(gradients.positions, k, sum);
        });
    });
    for (int i = 0; i < kSceneNumbers; ++i) {
        double sum = 0;
        for (int task = 0; task < tasks_of(mesh.vertices); ++task) sum += parts[size_t(task) * kSceneNumbers + i];
        gradients.scene[i] = static_cast<float>(sum);
    }
}

}  // namespace mien
