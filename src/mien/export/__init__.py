"""Results as files: GLB, OBJ, PLY, UV maps and pictures. docs/outputs.md lists them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from pathlib import Path

from mien.errors import ConfigError
from mien.export.face_normals import FaceNormals
from mien.export.gltf import glb_bytes as glb_bytes
from mien.export.gltf import write_glb as write_glb
from mien.export.head_glb import head_glb_bytes as head_glb_bytes
from mien.export.head_glb import write_head_glb as write_head_glb
from mien.export.head_painter import HeadPainter
from mien.export.images import FacePainter, albedo_map, overlay_image, sheet_image
from mien.export.obj import materials_text, obj_text
from mien.export.obj import write_obj as write_obj
from mien.export.ply import write_ply as write_ply
from mien.export.turntable import expression_sheet, turntable_file
from mien.io.animation import check_animation
from mien.io.files import write_text, write_whole, writing, writing_folder
from mien.io.photo import Photo
from mien.io.pixels import to_uint8
from mien.io.png import write_png
from mien.io.result_files import (
    ALBEDO_FILE,
    DEFAULT_FORMATS,
    EXPRESSIONS_FILE,
    GLB_FILE,
    HEAD_GLB_FILE,
    MESH_ENDINGS,
    MODEL_FORMATS,
    NORMALS_FILE,
    OBJ_FILE,
    OVERLAY_FILE,
    PHOTO_FORMATS,
    PLY_FILE,
    SHEET_FILE,
    TEXTURE_FILE,
    TURNTABLE_FILE,
    VIDEO_FILE,
    is_mesh_file,
    parse_formats,
    remove_other_formats,
)
from mien.io.result_folder import folder_of, write_coefficients, write_offset_maps, write_result_files
from mien.morphable import MorphableModel, load_model
from mien.morphable.registry import converted_model_path
from mien.result import Reconstruction


def write_reconstruction(
    reconstruction: Reconstruction,
    model: MorphableModel | None,
    photo: Photo | None,
    folder: str | os.PathLike[str],
    formats: str | Iterable[str] = DEFAULT_FORMATS,
    *,
    morphs: str = "sparse",
) -> None:
    """Write the files of one face into a folder: mesh, UV maps, pictures and numbers, as docs/outputs.md lists them.

    The folder appears, or its files change, only after all files are written. Files of an earlier result in formats
    that are not chosen now are removed.

    Args:
        reconstruction: The face.
        model: The model that the face was reconstructed with, `Reconstructor.model`. `None` if only `ply`, `npz` and
            `json` are written.
        photo: The photo that shows the face. `None` if neither `sheet` nor `overlay` is written.
        folder: The folder of this face; missing parents are made.
        formats: What to write, some of `glb`, `head`, `obj`, `ply`, `maps`, `sheet`, `overlay`, `expressions`,
            `turntable`, `video`, `npz` and `json`, or one text with commas. `Reconstruction.load` needs `npz`.
        morphs: How GLBs store their morph targets: "sparse", or "dense" for programs that lose sparse data.

    Raises:
        ConfigError: A format or `morphs` is unknown, a format needs a model or photo that is not given, or these are
            not those of the reconstruction.
        ModelMismatch: A format shows the whole head, and the model is not `mien-face`.
        OutputError: The folder cannot be written.

    Example:
        >>> photo = mien.read_photo("photo.jpg")
        >>> reconstructor = mien.Reconstructor()
        >>> for index, face in enumerate(reconstructor(photo)):
        ...     mien.write_reconstruction(face, reconstructor.model, photo, f"out/face{index}")
    """
    formats = parse_formats(formats)
    folder = Path(folder)
    if model is not None:
        _check_model(reconstruction, model)
        if not reconstruction.expression_names:
            reconstruction = replace(reconstruction, expression_names=model.expression_names)
    if photo is not None:
        _check_photo(reconstruction, photo)
    _check_given(formats, MODEL_FORMATS, model, "model")
    _check_given(formats, PHOTO_FORMATS, photo, "photo")
    with writing_folder(folder) as partial:
        _write_numbers(reconstruction, partial, formats)
        if model is not None:
            normals = FaceNormals(reconstruction, model)
            _write_model_formats(reconstruction, model, partial, formats, morphs=morphs, normals=normals)
            if photo is not None:
                _write_pictures(FacePainter(reconstruction, model, normals=normals), photo, partial, formats)
    with writing(folder):
        remove_other_formats(folder, formats)


def write_mesh(
    reconstruction: Reconstruction, model: MorphableModel, path: str | os.PathLike[str], *, morphs: str = "sparse"
) -> None:
    """Write one mesh file; its ending chooses the format: `.glb`, `.obj` or `.ply`.

    Beside an OBJ of the name face.obj go face.mtl and its texture, face_texture.png.

    Args:
        reconstruction: The face.
        model: The model that the face was reconstructed with.
        path: The file to write; its folder is made if it is missing.
        morphs: How a GLB stores its morph targets: "sparse", or "dense" for programs that lose sparse data.

    Raises:
        ConfigError: The ending is another, `morphs` is unknown, or the model is not that of the reconstruction.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in MESH_ENDINGS:
        raise ConfigError(f"path={path} ends in {path.suffix!r}; use one of {', '.join(MESH_ENDINGS)}.")
    _check_model(reconstruction, model)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        match path.suffix.lower():
            case ".glb":
                write_whole(path, lambda partial: write_glb(reconstruction, model, partial, morphs=morphs))
            case ".ply":
                write_whole(path, lambda partial: write_ply(reconstruction, partial))
            case _:
                # Not anna.png, which may be the photo.
                texture, materials = path.with_name(f"{path.stem}_texture.png"), path.with_suffix(".mtl")
                write_whole(texture, lambda partial: write_png(to_uint8(reconstruction.texture), partial))
                write_text(materials, materials_text(texture.name))
                write_text(path, obj_text(reconstruction, model, materials=materials.name))


def write_turntable(
    reconstruction: Reconstruction, path: str | os.PathLike[str], *, model: MorphableModel | None = None
) -> None:
    """Write an endless animation of the head that turns once, lit as in a studio.

    Args:
        reconstruction: The face.
        path: The file to write: `.webp`, an animated picture, or `.mp4`, H.264 video, which needs
            `pip install 'mien[video]'`. Its folder is made if it is missing.
        model: The face's model. Default: the packaged or converted model of the face's `model_name`.

    Raises:
        ConfigError: The ending is another, PyAV is not installed, or the model is not that of the reconstruction.
        ModelMismatch: The model is not `mien-face`, the only one with a head.
        OutputError: The file cannot be written.

    Example:
        >>> mien.write_turntable(mien.Reconstruction.load("out/photo/face0"), "anna.webp")
    """
    path = Path(path)
    check_animation(path)
    model = model or _model_of(reconstruction)
    _check_model(reconstruction, model)
    painter = HeadPainter(reconstruction, model)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda partial: turntable_file(painter, partial))


def save_reconstruction(
    reconstruction: Reconstruction,
    path: str | os.PathLike[str],
    *,
    formats: str | Iterable[str] | None,
    model: MorphableModel | None,
    photo: Photo | None,
) -> None:
    """Write a folder or one mesh file: `Reconstruction.save`, whose arguments and errors these are."""
    if is_mesh_file(Path(path)):
        if formats is not None:
            raise ConfigError(f"path={path} names one file, so formats has no effect; leave it out or give a folder.")
        write_mesh(reconstruction, model or _model_of(reconstruction), path)
        return
    if formats is None:
        model = model or _find_model(reconstruction.model_name)
        given = {"glb": model is not None, "sheet": model is not None and photo is not None}
        formats = [name for name in DEFAULT_FORMATS if given.get(name, True)]
    formats = parse_formats(formats)
    if model is None and MODEL_FORMATS & set(formats):
        model = _model_of(reconstruction)
    write_reconstruction(reconstruction, model, photo, folder_of(path), formats)


def glb_of(reconstruction: Reconstruction, model: MorphableModel | None) -> bytes:
    """Encode a face as a GLB file: `Reconstruction.glb_bytes`, whose arguments and errors these are."""
    model = model or _model_of(reconstruction)
    _check_model(reconstruction, model)
    return glb_bytes(reconstruction, model)


def _model_of(reconstruction: Reconstruction) -> MorphableModel:
    """Load the model of a reconstruction by its name: the packaged one or a converted one.

    Raises:
        ConfigError: There is no model of this name.
    """
    model = _find_model(reconstruction.model_name)
    if model is None:
        raise ConfigError(
            f"model={reconstruction.model_name!r} cannot be found by its name; give the model that made the face, "
            "model=reconstructor.model."
        )
    return model


def _find_model(name: str) -> MorphableModel | None:
    try:
        path = converted_model_path(name)
    except ConfigError:
        return None
    return load_model(path)


def _write_numbers(reconstruction: Reconstruction, folder: Path, formats: Sequence[str]) -> None:
    """The formats that need neither model nor photo."""
    if "npz" in formats:
        write_result_files(reconstruction, folder)
    elif "json" in formats:
        write_coefficients(reconstruction, folder)
    if "ply" in formats:
        write_ply(reconstruction, folder / PLY_FILE)
    if {"obj", "maps"} & set(formats):
        write_png(to_uint8(reconstruction.texture), folder / TEXTURE_FILE)


def _write_model_formats(
    reconstruction: Reconstruction,
    model: MorphableModel,
    folder: Path,
    formats: Sequence[str],
    *,
    morphs: str,
    normals: FaceNormals,
) -> None:
    if "glb" in formats:
        write_glb(reconstruction, model, folder / GLB_FILE, morphs=morphs, normals=normals)
    if "head" in formats:
        write_head_glb(reconstruction, model, folder / HEAD_GLB_FILE, morphs=morphs)
    if {"expressions", "turntable", "video"} & set(formats):
        _write_head_pictures(HeadPainter(reconstruction, model), model, folder, formats)
    if "obj" in formats:
        write_obj(reconstruction, model, folder / OBJ_FILE, normals=normals.of_mesh)
    if "maps" in formats:
        write_offset_maps(reconstruction, folder)
        write_png(to_uint8(albedo_map(reconstruction, model)), folder / ALBEDO_FILE)
        write_png(to_uint8(0.5 + 0.5 * normals.of_map), folder / NORMALS_FILE)


def _write_head_pictures(painter: HeadPainter, model: MorphableModel, folder: Path, formats: Sequence[str]) -> None:
    if "expressions" in formats:
        write_png(expression_sheet(painter, model.expression_names), folder / EXPRESSIONS_FILE)
    if "turntable" in formats:
        turntable_file(painter, folder / TURNTABLE_FILE)
    if "video" in formats:
        turntable_file(painter, folder / VIDEO_FILE)


def _write_pictures(painter: FacePainter, photo: Photo, folder: Path, formats: Sequence[str]) -> None:
    if "overlay" in formats:
        write_png(overlay_image(painter.reconstruction, painter, photo), folder / OVERLAY_FILE)
    if "sheet" in formats:
        write_png(sheet_image(painter.reconstruction, painter, photo), folder / SHEET_FILE)


def _check_given(formats: Sequence[str], needed: Set[str], value: object, name: str) -> None:
    lacking = [chosen for chosen in formats if chosen in needed]
    if lacking and value is None:
        raise ConfigError(f"{name}=None, but {', '.join(lacking)} of formats need it; give it, or leave these out.")


def _check_model(reconstruction: Reconstruction, model: MorphableModel) -> None:
    if reconstruction.model_name != model.name or len(reconstruction.vertices) != len(model.mean):
        raise ConfigError(
            f"model={model.name!r} has {len(model.mean)} vertices, but the reconstruction was made with "
            f"{reconstruction.model_name!r} of {len(reconstruction.vertices)}; load that model."
        )


def _check_photo(reconstruction: Reconstruction, photo: Photo) -> None:
    height, width = photo.pixels.shape[:2]
    if reconstruction.image_size != (width, height):
        size = " × ".join(map(str, reconstruction.image_size))
        raise ConfigError(
            f"photo={photo.path} is {width} × {height}, but the reconstruction's photo was {size}; give that photo."
        )
