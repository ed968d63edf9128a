// The soft rasterizer on the CPU, independent of Python and torch: plain arrays in, plain arrays out.
//
// src/mien/rasterizer/reference.py is the definition; this code computes the same, faster.
// Nothing is checked here: ops.py has checked every shape, index and number, and has cut triangles that cross the near
// plane. Triangles that still have a corner before it are left out.
#pragma once

#include <cstdint>

namespace mien {

// A batch of meshes. Arrays are dense and row-major; the comment gives the shape.
struct Meshes {
    int images;             // B
    int vertices;           // V
    int triangles;          // T
    int channels;           // C
    const float* positions;     // B V 3: x, y in NDC (y down, shorter image side spans [-1, 1]), z camera depth
    const int32_t* corners;     // T 3, or B T 3
    bool corners_per_image;
    const float* attributes;    // B V C
    const float* near_depth;    // B
    const float* far_depth;     // B
};

struct Settings {
    int height;
    int width;
    double sigma;     // NDC²
    double gamma;     // of the normalised depth
    double dist_eps;  // pairs with less coverage are dropped
    bool cull_backfaces;
    bool linear_depth;  // PyTorch3D's definition: depth is linear on the screen, barycentrics are clamped at 0 only
    int threads;
};

// The nearest triangle under each pixel centre.
struct FragmentArrays {
    int32_t* triangle_ids;  // B H W, -1 where empty
    float* barycentrics;    // B H W 3, perspective-correct if the depth is
    float* depth;           // B H W, 0 where empty
};

// Planes of `state`, B 4 H W: the numbers of the softmax that the backward pass needs in addition to the image.
enum StatePlane : int {
    kTransmittance = 0,  // product of (1 - D); stored because 1 - alpha loses its digits where alpha is near 1
    kPeakWhole = 1,      // the running maximum of zeta = z_norm / gamma, split into a whole number ...
    kPeakRest = 2,       // ... and a rest, see `Triangle` in kernels.hpp
    kWeightSum = 3,      // sum of the softmax weights relative to that maximum
    kStatePlanes = 4,
};

struct SoftArrays {
    float* image;  // B C H W
    float* alpha;  // B H W
    float* state;  // B 4 H W
    FragmentArrays fragments;
};

struct SoftGradients {
    const float* image;         // B C H W: result of the forward pass
    const float* state;         // B 4 H W: result of the forward pass
    const float* image_grad;    // B C H W
    const float* alpha_grad;    // B H W
    float* positions_grad;      // B V 3, overwritten
    float* attributes_grad;     // B V C, overwritten
};

void soft_forward(const Meshes&, const Settings&, const float* background, const SoftArrays&);
void soft_backward(const Meshes&, const Settings&, const SoftGradients&);
void hard_forward(const Meshes&, const Settings&, const FragmentArrays&);

// The number of (pixel, triangle) pairs that the soft passes accept: the unit of their cost.
int64_t count_pairs(const Meshes&, const Settings&);

// What has to be known of the numbers of a batch before it is drawn.
struct Contents {
    bool valid;    // all positions and attributes are finite, and all corners are vertices
    bool crosses;  // a vertex lies before the near plane of its image
};
Contents scan(const Meshes&);

// Instruction sets that this machine can run, best first, separated by spaces; and the one in use.
const char* available_isas();
const char* current_isa();
bool select_isa(const char* name);  // false if this machine cannot run it

// Bytes of workspace that the calling thread keeps for its next call.
int64_t workspace_bytes();

// For tests: maximum length of the lists of blocks before an image is divided into pieces, 0 for the default. Returns the
// previous value. The image does not depend on it.
int64_t select_list_budget(int64_t numbers);

// Measured single-thread rate of fused (or, without FMA, separate) multiply-adds, in GFLOP/s.
double measure_fma_rate();

}  // namespace mien
