// The Python bindings: unpack arrays into plain structs and release the interpreter lock while the kernels run.
// ops.py is the only caller and has checked shapes, types and ranges.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <cstring>

#include "equations.hpp"
#include "parallel.hpp"
#include "soft_raster.hpp"
#include "surface.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <typename Item, int Dimensions>
using Array = nb::ndarray<Item, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;

using Positions = Array<const float, 3>;
using Corners = nb::ndarray<const int32_t, nb::c_contig, nb::device::cpu>;  // T 3 or B T 3
using PerImage = Array<const float, 1>;

mien::Meshes meshes_of(const Positions& positions, const Corners& corners, const float* attributes, int channels,
                       const PerImage& near_depth, const PerImage& far_depth) {
    mien::Meshes meshes{};
    meshes.images = static_cast<int>(positions.shape(0));
    meshes.vertices = static_cast<int>(positions.shape(1));
    meshes.corners_per_image = corners.ndim() == 3;
    meshes.triangles = static_cast<int>(corners.shape(corners.ndim() - 2));
    meshes.channels = channels;
    meshes.positions = positions.data();
    meshes.corners = corners.data();
    meshes.attributes = attributes;
    meshes.near_depth = near_depth.data();
    meshes.far_depth = far_depth.data();
    return meshes;
}

bool is_pytorch3d(const char* barycentric_clip) { return std::strcmp(barycentric_clip, "pytorch3d") == 0; }

void soft_forward(Positions positions, Corners corners, Array<const float, 3> attributes, PerImage near_depth,
                  PerImage far_depth, Array<const float, 1> background, double sigma, double gamma, double dist_eps,
                  bool cull_backfaces, const char* barycentric_clip, int threads, Array<float, 4> image, Array<float, 3> alpha,
                  Array<int32_t, 3> triangle_ids, Array<float, 4> barycentrics, Array<float, 3> depth,
                  Array<float, 4> state) {
    const mien::Meshes meshes = meshes_of(positions, corners, attributes.data(),
                                          static_cast<int>(attributes.shape(2)), near_depth, far_depth);
    const mien::Settings settings = {static_cast<int>(image.shape(2)), static_cast<int>(image.shape(3)), sigma, gamma,
                                     dist_eps, cull_backfaces, is_pytorch3d(barycentric_clip), threads};
    const mien::SoftArrays out = {
        image.data(), alpha.data(), state.data(), {triangle_ids.data(), barycentrics.data(), depth.data()}};
    const nb::gil_scoped_release unlocked;
    mien::soft_forward(meshes, settings, background.data(), out);
}

void soft_backward(Positions positions, Corners corners, Array<const float, 3> attributes, PerImage near_depth,
                   PerImage far_depth, double sigma, double gamma, double dist_eps, bool cull_backfaces,
                   const char* barycentric_clip, int threads, Array<const float, 4> image, Array<const float, 4> state, Array<const float, 4> image_grad,
                   Array<const float, 3> alpha_grad, Array<float, 3> positions_grad,
                   Array<float, 3> attributes_grad) {
    const mien::Meshes meshes = meshes_of(positions, corners, attributes.data(),
                                          static_cast<int>(attributes.shape(2)), near_depth, far_depth);
    const mien::Settings settings = {static_cast<int>(image.shape(2)), static_cast<int>(image.shape(3)), sigma, gamma,
                                     dist_eps, cull_backfaces, is_pytorch3d(barycentric_clip), threads};
    const mien::SoftGradients gradients = {image.data(),      state.data(),          image_grad.data(),
                                           alpha_grad.data(), positions_grad.data(), attributes_grad.data()};
    const nb::gil_scoped_release unlocked;
    mien::soft_backward(meshes, settings, gradients);
}

void hard_forward(Positions positions, Corners corners, PerImage near_depth, PerImage far_depth, bool cull_backfaces,
                  int threads, Array<int32_t, 3> triangle_ids, Array<float, 4> barycentrics, Array<float, 3> depth) {
    const mien::Meshes meshes = meshes_of(positions, corners, nullptr, 0, near_depth, far_depth);
    const mien::Settings settings = {static_cast<int>(depth.shape(1)), static_cast<int>(depth.shape(2)), 1.0, 1.0, 0.5,
                                     cull_backfaces, false, threads};
    const nb::gil_scoped_release unlocked;
    mien::hard_forward(meshes, settings, {triangle_ids.data(), barycentrics.data(), depth.data()});
}

int64_t count_pairs(Positions positions, Corners corners, PerImage near_depth, PerImage far_depth, int height,
                    int width, double sigma, double dist_eps, bool cull_backfaces) {
    const mien::Meshes meshes = meshes_of(positions, corners, nullptr, 0, near_depth, far_depth);
    const mien::Settings settings = {height, width, sigma, 1.0, dist_eps, cull_backfaces, false, 1};
    const nb::gil_scoped_release unlocked;
    return mien::count_pairs(meshes, settings);
}

void colour_equations(nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> corners,
                      Array<const float, 2> barycentrics, Array<const float, 3> by_corner, Array<const float, 3> by_pose,
                      Array<const float, 2> shading, Array<const float, 3> by_light, Array<const float, 2> errors,
                      Array<const float, 1> weights, Array<const float, 3> shape_basis,
                      Array<const float, 3> albedo_basis, int threads, Array<float, 2> hessian, Array<float, 1> gradient) {
    const mien::ColourSamples samples = {static_cast<int>(corners.shape(0)), static_cast<int>(shape_basis.shape(2)),
                                         static_cast<int>(albedo_basis.shape(2)), corners.data(), barycentrics.data(),
                                         by_corner.data(), by_pose.data(), shading.data(), by_light.data(), errors.data(),
                                         weights.data(), shape_basis.data(), albedo_basis.data()};
    const nb::gil_scoped_release unlocked;
    mien::colour_equations(samples, threads, hessian.data(), gradient.data());
}

using Numbers = Array<const int32_t, 1>;

mien::MeshTopology topology_of(const Corners& corners, const Numbers& first_corner, const Numbers& corner_of) {
    return {static_cast<int>(first_corner.shape(0)) - 1, static_cast<int>(corners.shape(0)), corners.data(),
            first_corner.data(), corner_of.data()};
}

// Scenes are rows of rotation, scale, translation and light.
mien::Scene scene_of(const Array<const float, 2>& scenes, size_t image) {
    mien::Scene scene;
    static_assert(sizeof scene == (9 + 1 + 3 + mien::kLightNumbers) * sizeof(float));
    std::memcpy(&scene, scenes.data() + image * scenes.shape(1), sizeof scene);
    return scene;
}

void surface_forward(Corners corners, Numbers first_corner, Numbers corner_of, Positions positions,
                     Array<const float, 2> scenes, int threads, Array<float, 3> camera, Array<float, 3> normals,
                     Array<float, 3> shading, Array<float, 2> lengths) {
    const mien::MeshTopology mesh = topology_of(corners, first_corner, corner_of);
    const nb::gil_scoped_release unlocked;
    for (size_t image = 0; image < positions.shape(0); ++image) {
        const size_t start = image * mesh.vertices;
        mien::surface_forward(mesh, positions.data() + 3 * start, scene_of(scenes, image), threads,
                              {camera.data() + 3 * start, normals.data() + 3 * start, shading.data() + 3 * start,
                               lengths.data() + start});
    }
}

void surface_backward(Corners corners, Numbers first_corner, Numbers corner_of, Positions positions,
                      Array<const float, 2> scenes, Array<const float, 3> normals, Array<const float, 2> lengths,
                      int threads, Array<const float, 3> camera_grad, Array<const float, 3> normals_grad,
                      Array<const float, 3> shading_grad, Array<float, 3> positions_grad, Array<float, 2> scenes_grad) {
    const mien::MeshTopology mesh = topology_of(corners, first_corner, corner_of);
    const nb::gil_scoped_release unlocked;
    for (size_t image = 0; image < positions.shape(0); ++image) {
        const size_t start = image * mesh.vertices;
        mien::surface_backward(mesh, positions.data() + 3 * start, scene_of(scenes, image), normals.data() + 3 * start,
                               lengths.data() + start, threads,
                               {camera_grad.data() + 3 * start, normals_grad.data() + 3 * start,
                                shading_grad.data() + 3 * start, positions_grad.data() + 3 * start,
                                scenes_grad.data() + image * scenes_grad.shape(1)});
    }
}

void select_isa(const char* name) {
    if (!mien::select_isa(name)) throw nb::value_error("this machine does not support that instruction set; see available_isas()");
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "The soft rasterizer's CPU kernels; called by mien.rasterizer.ops, which checks the arguments.";
    module.def("soft_forward", &soft_forward);
    module.def("soft_backward", &soft_backward);
    module.def("hard_forward", &hard_forward);
    module.def("count_pairs", &count_pairs);
    module.def("colour_equations", &colour_equations);
    module.def("surface_forward", &surface_forward);
    module.def("surface_backward", &surface_backward);
    module.def("available_isas", &mien::available_isas, "Instruction sets this machine can run, best first.");
    module.def("current_isa", &mien::current_isa);
    module.def("select_isa", &select_isa, "name"_a, "For tests and benchmarks: use another instruction set.");
    module.def("use_openmp", [](std::uintptr_t gomp_parallel) {
        mien::openmp() = {reinterpret_cast<mien::GompParallel>(gomp_parallel), mien::process_id()};
    }, "Use the threads of the OpenMP library with GOMP_parallel at this address; 0 for own threads.");
    module.def("workspace_bytes", &mien::workspace_bytes, "Bytes that this thread keeps for its next call.");
    module.def("select_list_budget", &mien::select_list_budget, "numbers"_a,
               "For tests: maximum length of the lists of blocks before an image is divided, 0 for the default.");
    module.def("measure_fma_rate", &mien::measure_fma_rate, "GFLOP/s of one thread; takes about 0.1 s.",
               nb::call_guard<nb::gil_scoped_release>());
}
