"""Results as files: meshes, UV maps and pictures. docs/outputs.md lists them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
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
from mien.export.mesh_files import MeshFiles
from mien.export.turntable import expression_sheet, turntable_file
from mien.io.animation import check_animation
from mien.io.files import write_whole, writing, writing_folder
from mien.io.photo import Photo
from mien.io.pixels import to_uint8
from mien.io.png import write_png
from mien.io.result_files import (
    ALBEDO_FILE,
    DEFAULT_FORMATS,
    EXPRESSIONS_FILE,
    FACE,
    HEAD,
    MESH_ENDINGS,
    NORMALS_FILE,
    OVERLAY_FILE,
    PHOTO_FORMATS,
    PICTURE_FORMATS,
    SHEET_FILE,
    TEXTURE_FILE,
    TURNTABLE_FILE,
    VIDEO_FILE,
    MeshOptions,
    is_mesh_file,
    mesh_file,
    needs_model,
    parse_formats,
    remove_other_files,
    texture_file,
)
from mien.io.result_folder import folder_of, write_coefficients, write_offset_maps, write_result_files
from mien.morphable import MorphableModel, load_model
from mien.morphable.per_model import on_cpu
from mien.morphable.registry import converted_model_path
from mien.result import Reconstruction


def write_reconstruction(
    reconstruction: Reconstruction,
    model: MorphableModel | None,
    photo: Photo | None,
    folder: str | os.PathLike[str],
    formats: str | Iterable[str] = DEFAULT_FORMATS,
    *,
    parts: str | Iterable[str] = FACE,
    neutral: bool = False,
    units: str = "m",
    embed_camera: bool = False,
    morphs: str = "sparse",
    scalp: str = "hair",
) -> None:
    """Write the files of one face into a folder: meshes, UV maps, pictures and numbers, as docs/outputs.md lists them.

    The folder appears, or its files change, only after all files are written. Files of an earlier result in formats
    or parts that are not chosen now are removed.

    Args:
        reconstruction: The face.
        model: The model that the face was reconstructed with, `Reconstructor.model`. `None` if only `ply` of a face,
            `npz` and `json` are written.
        photo: The photo that shows the face. `None` if neither `sheet` nor `overlay` is written.
        folder: The folder of this face; missing parents are made.
        formats: What to write, some of `glb`, `obj`, `ply`, `usd`, `vrm`, `maps`, `sheet`, `overlay`, `expressions`,
            `turntable`, `video`, `npz` and `json`, or one text with commas. `Reconstruction.load` needs `npz`.
        parts: What the meshes show: `face`, `head`, or both: "face,head". `vrm` is always the head.
        neutral: Whether the meshes show the neutral face instead of the photo's expression.
        units: Unit of lengths in OBJ, PLY and USD: "m", "cm" or "mm". GLB and VRM are in metres, as glTF prescribes.
        embed_camera: Whether GLB and USD contain the photo's camera, with the face where the camera saw it, so that
            the scene renders over the photo.
        morphs: How GLBs store their morph targets: "sparse", or "dense" for programs that lose sparse data.
        scalp: What the scalp of a head shows: "hair", short hair in the photo's colour, or "skin", a shaved scalp.

    Raises:
        ConfigError: A choice is unknown or has no effect on the formats, a format needs a model or photo that is not
            given, or these are not those of the reconstruction.
        ModelMismatch: A head or a picture of it is asked for, and the model is not `mien-face`.
        BackendUnavailable: `usd` is among the formats, and the package usd-core is missing.
        OutputError: The folder cannot be written.

    Example:
        >>> photo = mien.read_photo("photo.jpg")
        >>> reconstructor = mien.Reconstructor()
        >>> for index, face in enumerate(reconstructor(photo)):
        ...     mien.write_reconstruction(face, reconstructor.model, photo, f"out/face{index}")
    """
    formats = parse_formats(formats)
    options = MeshOptions.parsed(
        parts, neutral=neutral, units=units, embed_camera=embed_camera, morphs=morphs, scalp=scalp
    )
    options.check_effect(formats)
    write_files(reconstruction, model, photo, folder, formats=formats, options=options)


def write_files(
    reconstruction: Reconstruction,
    model: MorphableModel | None,
    photo: Photo | None,
    folder: str | os.PathLike[str],
    *,
    formats: Sequence[str],
    options: MeshOptions,
) -> None:
    """Write the files of one face into a folder: `write_reconstruction`, with checked formats and options."""
    folder = Path(folder)
    if model is not None:
        _check_model(reconstruction, model)
        model = on_cpu(model)
        if not reconstruction.expression_names:
            reconstruction = replace(reconstruction, expression_names=model.expression_names)
    if photo is not None:
        _check_photo(reconstruction, photo)
    _check_given([name for name in formats if needs_model(name, options)], model, "model")
    _check_given([name for name in formats if name in PHOTO_FORMATS], photo, "photo")
    with writing_folder(folder) as partial:
        normals = None if model is None else FaceNormals(reconstruction, model)
        _write_numbers(reconstruction, partial, formats)
        _write_meshes(MeshFiles(reconstruction, model, options, normals=normals), partial, formats, options)
        if model is not None and normals is not None:
            if "maps" in formats:
                _write_maps(reconstruction, model, partial, normals)
            if PICTURE_FORMATS & set(formats):
                _write_head_pictures(HeadPainter(reconstruction, model), model, partial, formats)
            if photo is not None:
                _write_pictures(FacePainter(reconstruction, model, normals=normals), photo, partial, formats)
    with writing(folder):
        remove_other_files(folder, formats, options.parts)


def write_mesh(
    reconstruction: Reconstruction,
    model: MorphableModel,
    path: str | os.PathLike[str],
    options: MeshOptions = MeshOptions(),  # noqa: B008 (it is frozen)
) -> None:
    """Write one mesh file; its ending chooses the format: `.glb`, `.obj`, `.ply`, `.usdz` or `.vrm`.

    Beside an OBJ of the name face.obj go face.mtl and its texture, face_texture.png.

    Args:
        reconstruction: The face.
        model: The model that the face was reconstructed with.
        path: The file to write; its folder is made if it is missing.
        options: What the mesh shows and how it is written; one part, except for `.vrm`, which is always the head.

    Raises:
        ConfigError: The ending is another, an option has no effect on this format, there are two parts, or the model
            is not that of the reconstruction.
        ModelMismatch: A head or a picture of it is asked for, and the model is not `mien-face`.
        BackendUnavailable: The file is `.usdz`, and the package usd-core is missing.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    format_name = MESH_ENDINGS.get(path.suffix.lower())
    if format_name is None:
        raise ConfigError(f"path={path} ends in {path.suffix!r}; use one of {', '.join(MESH_ENDINGS)}.")
    options.check_effect([format_name])
    if len(options.parts) != 1:
        two = ",".join(options.parts)
        raise ConfigError(f"parts={two!r} are two meshes, but path={path} is one file; give a folder or one part.")
    _check_model(reconstruction, model)
    part = HEAD if format_name == "vrm" else options.parts[0]
    meshes = MeshFiles(reconstruction, on_cpu(model), options)
    # The texture is not anna.png, which may be the photo.
    files = meshes.files(format_name, part, name=path.name, texture=f"{path.stem}_texture.png")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write_whole(path.with_name(name), content)


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
    painter = HeadPainter(reconstruction, on_cpu(model))
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
    options: MeshOptions,
) -> None:
    """Write a folder or one mesh file: `Reconstruction.save`, whose arguments and errors these are."""
    if is_mesh_file(Path(path)):
        if formats is not None:
            raise ConfigError(f"path={path} names one file, so formats has no effect; leave it out or give a folder.")
        write_mesh(reconstruction, model or _model_of(reconstruction), path, options)
        return
    if formats is None:
        model = model or _find_model(reconstruction.model_name)
        given = {"glb": model is not None, "sheet": model is not None and photo is not None}
        formats = [name for name in DEFAULT_FORMATS if given.get(name, True)]
    formats = parse_formats(formats)
    options.check_effect(formats)
    if model is None and any(needs_model(name, options) for name in formats):
        model = _model_of(reconstruction)
    write_files(reconstruction, model, photo, folder_of(path), formats=formats, options=options)


def glb_of(reconstruction: Reconstruction, model: MorphableModel | None, options: MeshOptions) -> bytes:
    """Encode a face as a GLB file: `Reconstruction.glb_bytes`, whose arguments and errors these are."""
    if len(options.parts) != 1:
        raise ConfigError(f"parts={','.join(options.parts)!r} are two meshes; choose one of them.")
    model = model or _model_of(reconstruction)
    _check_model(reconstruction, model)
    return MeshFiles(reconstruction, on_cpu(model), options).content("glb", options.parts[0])


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
    if "maps" in formats:
        write_png(to_uint8(reconstruction.texture), folder / TEXTURE_FILE)


def _write_meshes(meshes: MeshFiles, folder: Path, formats: Sequence[str], options: MeshOptions) -> None:
    for format_name in MESH_ENDINGS.values():
        if format_name not in formats:
            continue
        for part in (HEAD,) if format_name == "vrm" else options.parts:
            name, texture = mesh_file(format_name, part), texture_file(part)
            for file, content in meshes.files(format_name, part, name=name, texture=texture).items():
                (folder / file).write_bytes(content)


def _write_whole(path: Path, content: bytes) -> None:
    write_whole(path, lambda partial: partial.write_bytes(content))


def _write_maps(reconstruction: Reconstruction, model: MorphableModel, folder: Path, normals: FaceNormals) -> None:
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


def _check_given(lacking: Sequence[str], value: object, name: str) -> None:
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
