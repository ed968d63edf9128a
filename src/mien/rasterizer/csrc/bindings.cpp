// The Python bindings: unpack arrays into plain structs and release the interpreter lock while the kernels run.
// ops.py is the only caller and has checked shapes, types and ranges.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "equations.hpp"
#include "gram.hpp"
#include "morph_normals.hpp"
#include "parallel.hpp"
#include "perception.hpp"
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

std::pair<bool, bool> scan(Positions positions, Corners corners, std::optional<Array<const float, 3>> attributes,
                           PerImage near_depth) {
    const mien::Meshes meshes = meshes_of(positions, corners, attributes ? attributes->data() : nullptr,
                                          attributes ? static_cast<int>(attributes->shape(2)) : 0, near_depth, near_depth);
    const nb::gil_scoped_release unlocked;
    const mien::Contents contents = mien::scan(meshes);
    return {contents.valid, contents.crosses};
}

int64_t count_pairs(Positions positions, Corners corners, PerImage near_depth, PerImage far_depth, int height,
                    int width, double sigma, double dist_eps, bool cull_backfaces) {
    const mien::Meshes meshes = meshes_of(positions, corners, nullptr, 0, near_depth, far_depth);
    const mien::Settings settings = {height, width, sigma, 1.0, dist_eps, cull_backfaces, false, 1};
    const nb::gil_scoped_release unlocked;
    return mien::count_pairs(meshes, settings);
}

void check_indices(const int32_t* first, std::size_t count, std::size_t limit) {
    const bool fine = std::all_of(first, first + count, [limit](int32_t index) { return std::size_t(uint32_t(index)) < limit; });
    if (!fine) throw nb::value_error("an index is not that of a vertex");
}

void morph_normals(Array<const float, 2> positions, Array<const float, 2> normals, Array<const int32_t, 2> triangles,
                   Array<const int64_t, 1> starts, Array<const int32_t, 1> rows, Array<const float, 2> offsets, float epsilon,
                   Array<int64_t, 1> turned_starts, Array<int32_t, 1> turned_rows, Array<float, 2> turned) {
    check_indices(triangles.data(), triangles.size(), positions.shape(0));
    check_indices(rows.data(), rows.size(), positions.shape(0));
    const mien::MorphMesh mesh = {positions.data(), normals.data(), triangles.data(), int64_t(positions.shape(0)),
                                  int64_t(triangles.shape(0))};
    const nb::gil_scoped_release unlocked;
    mien::morph_normals(mesh, {starts.data(), rows.data(), offsets.data()}, int64_t(starts.shape(0)) - 1, epsilon,
                        {turned_starts.data(), turned_rows.data(), turned.data()});
}

void normal_equations(Array<const double, 3> jacobian, Array<const double, 2> residuals, Array<const double, 2> weights,
                      Array<double, 3> hessian, Array<double, 2> gradient) {
    const nb::gil_scoped_release unlocked;
    const int64_t rows = int64_t(jacobian.shape(1)), unknowns = int64_t(jacobian.shape(2));
    for (int64_t k = 0; k < int64_t(jacobian.shape(0)); ++k) {
        const mien::LeastSquares problem = {rows, unknowns, jacobian.data() + k * rows * unknowns,
                                            residuals.data() + k * rows, weights.data() + k * rows};
        mien::normal_equations(problem, hessian.data() + k * unknowns * unknowns, gradient.data() + k * unknowns);
    }
}

void run_layers(Array<const int64_t, 2> program, Array<const float, 1> weights, Array<const int64_t, 1> result_buffers,
                nb::ndarray<const float, nb::ndim<4>, nb::device::cpu> input, const std::vector<Array<float, 4>>& outputs) {
    if (program.shape(1) != mien::kLayerNumbers) throw nb::value_error("a layer of the program has another number of columns");
    mien::Images images = {input.data(), int64_t(input.shape(0)), int64_t(input.shape(1)), int64_t(input.shape(2)),
                           int64_t(input.shape(3)), {}};
    for (size_t k = 0; k < 4; ++k) images.stride[k] = input.stride(k);
    std::vector<mien::Result> results;
    for (size_t k = 0; k < outputs.size(); ++k)
        results.push_back({result_buffers.data()[k], int64_t(outputs[k].shape(3)), outputs[k].data()});
    const auto* layers = reinterpret_cast<const mien::Layer*>(program.data());
    const nb::gil_scoped_release unlocked;
    mien::run_layers(layers, static_cast<int>(program.shape(0)), weights.data(), images, results.data(),
                     static_cast<int>(results.size()));
}

void sample_window(Array<const uint8_t, 3> pixels, Array<const double, 2> photo_from_window, bool continued,
                   Array<float, 3> colours, Array<float, 2> covered) {
    const mien::Photo photo = {pixels.data(), int64_t(pixels.shape(0)), int64_t(pixels.shape(1))};
    mien::Window window = {{}, int64_t(covered.shape(0)), continued};
    std::memcpy(window.photo_from_window, photo_from_window.data(), sizeof window.photo_from_window);
    const nb::gil_scoped_release unlocked;
    mien::sample_window(photo, window, colours.data(), covered.data());
}

void halve(Array<const uint8_t, 3> pixels, Array<uint8_t, 3> halved) {
    const nb::gil_scoped_release unlocked;
    mien::halve({pixels.data(), int64_t(pixels.shape(0)), int64_t(pixels.shape(1))}, halved.data());
}

void box_means(Array<const float, 2> values, int radius, int times, Array<float, 2> means) {
    const nb::gil_scoped_release unlocked;
    mien::box_means(values.data(), int64_t(values.shape(0)), radius, times, means.data());
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
    module.def("scan", &scan, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(),
               "Whether all numbers are valid, and whether a vertex lies before the near plane.");
    module.def("count_pairs", &count_pairs);
    module.def("morph_normals", &morph_normals);
    module.def("normal_equations", &normal_equations);
    module.def("run_layers", &run_layers);
    module.def("sample_window", &sample_window);
    module.def("halve", &halve);
    module.def("box_means", &box_means);
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
