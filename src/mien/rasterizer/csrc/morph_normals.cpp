#include "morph_normals.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace mien {
namespace {

struct Vector {
    float x, y, z;
    bool exceeds(float limit) const { return std::fabs(x) > limit || std::fabs(y) > limit || std::fabs(z) > limit; }
};

Vector operator+(const Vector& a, const Vector& b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
Vector operator-(const Vector& a, const Vector& b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }

Vector cross(const Vector& a, const Vector& b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

Vector normalised(const Vector& v) {
    const float length = std::sqrt(v.x * v.x + v.y * v.y + v.z * v.z);
    if (!(length > 0)) return {0, 0, 1};
    const float divisor = std::max(length, 1e-30f);
    return {v.x / divisor, v.y / divisor, v.z / divisor};
}

// Sums in double precision: the order of the triangles at a vertex then does not matter.
struct Sum {
    double x = 0, y = 0, z = 0;
    void add(const Vector& v) { x += v.x, y += v.y, z += v.z; }
    Vector rounded() const { return {static_cast<float>(x), static_cast<float>(y), static_cast<float>(z)}; }
};

class MovingMesh {
public:
    explicit MovingMesh(const MorphMesh& mesh)
        : mesh_(mesh), positions_(at(mesh.positions)), moved_(positions_, positions_ + mesh.vertices), moves_(mesh.vertices),
          sums_(mesh.vertices), areas_(mesh.count), changes_(mesh.vertices), touched_(mesh.vertices) {
        std::vector<Sum> sums(mesh.vertices);
        for (int64_t t = 0; t < mesh.count; ++t) {
            areas_[t] = area(positions_, corners(t));
            for (int k = 0; k < 3; ++k) sums[corners(t)[k]].add(areas_[t]);
        }
        for (int64_t v = 0; v < mesh.vertices; ++v) sums_[v] = sums[v].rounded();
    }

    void move(const int32_t* rows, const float* offsets, int64_t count) {
        for (int64_t k = 0; k < count; ++k) {
            moves_[rows[k]] = 1;
            moved_[rows[k]] = positions_[rows[k]] + at(offsets)[k];
        }
        for (int64_t t = 0; t < mesh_.count; ++t) {
            const int32_t* corner = corners(t);
            if (!(moves_[corner[0]] | moves_[corner[1]] | moves_[corner[2]])) continue;
            const Vector change = area(moved_.data(), corner) - areas_[t];
            for (int k = 0; k < 3; ++k) {
                changes_[corner[k]].add(change);
                touched_[corner[k]] = 1;
            }
        }
        for (int64_t k = 0; k < count; ++k) {
            moves_[rows[k]] = 0;
            moved_[rows[k]] = positions_[rows[k]];
        }
    }

    // Write the offsets of the normals and forget the movement. Returns their number.
    int64_t take_turned(float epsilon, int32_t* rows, float* values) {
        int64_t count = 0;
        for (int64_t v = 0; v < mesh_.vertices; ++v) {
            if (!touched_[v]) continue;
            const Vector change = changes_[v].rounded();
            touched_[v] = 0;
            changes_[v] = {};
            if (!change.exceeds(0)) continue;
            const Vector turn = normalised(sums_[v] + change) - at(mesh_.normals)[v];
            if (!turn.exceeds(epsilon)) continue;
            rows[count] = static_cast<int32_t>(v);
            std::copy_n(&turn.x, 3, values + 3 * count++);
        }
        return count;
    }

private:
    static const Vector* at(const float* values) { return reinterpret_cast<const Vector*>(values); }
    const int32_t* corners(int64_t triangle) const { return mesh_.triangles + 3 * triangle; }
    static Vector area(const Vector* positions, const int32_t* corner) {
        const Vector first = positions[corner[0]];
        return cross(positions[corner[1]] - first, positions[corner[2]] - first);
    }

    MorphMesh mesh_;
    const Vector* positions_;
    std::vector<Vector> moved_;   // positions, moved
    std::vector<uint8_t> moves_;  // whether a vertex moves
    std::vector<Vector> sums_;    // normals without movement, weighted by area
    std::vector<Vector> areas_;   // of the triangles without movement
    std::vector<Sum> changes_;
    std::vector<uint8_t> touched_;
};

}  // namespace

void morph_normals(const MorphMesh& mesh, const MorphRows<const int64_t, const int32_t, const float>& moved, int64_t targets,
                   float epsilon, const MorphRows<int64_t, int32_t, float>& turned) {
    MovingMesh moving(mesh);
    turned.starts[0] = 0;
    for (int64_t n = 0; n < targets; ++n) {
        const int64_t from = moved.starts[n], to = turned.starts[n];
        moving.move(moved.rows + from, moved.values + 3 * from, moved.starts[n + 1] - from);
        turned.starts[n + 1] = to + moving.take_turned(epsilon, turned.rows + to, turned.values + 3 * to);
    }
}

}  // namespace mien
