"""The commands of `mien model`; heavy packages are imported inside the commands."""
# ruff: noqa: PLC0415 (imports inside commands), PLR0917 (options are named by typer, not by position)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from mien.cli.options import JsonOption, QuietOption, model_path, suffixed, wrong_usage
from mien.cli.terminal import activity, plain_table, print_json, print_values, printable, stdout
from mien.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from mien.morphable import MorphableModel

model_app = typer.Typer(help="List, show, convert and use face models.", no_args_is_help=True)


@model_app.command("info")
def model_info(
    name: Annotated[
        str, typer.Argument(callback=model_path, help="Face model: a name, or the path of a .safetensors file.")
    ] = "mien-face",
    *,
    picture: Annotated[
        Path | None,
        typer.Option(callback=suffixed(".png"), help="PNG to write: the mean and ±3 standard deviations."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the contents of a face model."""
    from mien.morphable import load_model

    model = load_model(name)
    if picture is not None:
        from mien.export.model_sheet import model_picture
        from mien.io.png import write_png

        try:
            write_png(model_picture(model), picture)
        except (OSError, ValueError) as error:
            raise OutputError(f"{picture}: cannot be written ({error}); name a .png in an existing folder") from error
    if as_json:
        print_json(_content(model))
    else:
        print_values(*_description(model))


def _content(model: MorphableModel) -> dict[str, object]:
    """The description for JSON; docs/formats.md lists the keys."""
    identity, expression, albedo = model.counts
    return {
        "model": model.name,
        "licence": model.licence,
        "vertices": len(model.mean),
        "triangles": len(model.triangles),
        "size_mm": (1000 * (model.mean.amax(0) - model.mean.amin(0))).tolist(),
        "coefficients": {"identity": identity, "expression": expression, "albedo": albedo},
        "expression_kind": model.expression_kind,
        "expressions": model.expression_names,
        "blendshapes": model.blendshapes[0],
        "joints": _joints(model),
        "completed": model.notes,
    }


def _joints(model: MorphableModel) -> int:
    return 0 if model.skinning is None else len(model.skinning.parents)


def _description(model: MorphableModel) -> list[tuple[str, str]]:
    low, high = model.mean.amin(0) * 1000, model.mean.amax(0) * 1000
    counts, units = model.counts, _EXPRESSION_UNITS[model.expression_kind]
    return [
        ("model", model.name),
        ("licence", model.licence),
        ("mesh", f"{len(model.mean)} vertices, {len(model.triangles)} triangles"),
        ("size of the mean", " x ".join(f"{side:.0f}" for side in (high - low).tolist()) + " mm"),
        ("axes and units", "metres; +x the subject's left, +y up, +z out of the face; sRGB 0 to 1"),
        ("coefficients", f"{counts[0]} identity, {counts[1]} expression, {counts[2]} albedo"),
        ("units of coefficients", f"identity and albedo in standard deviations, expression in {units}"),
        ("expressions", ", ".join(model.expression_names)),
        ("blendshapes for animation", f"{len(model.blendshapes[0])}"),
        ("joints", str(_joints(model) or "none")),
        *(("converted", note) for note in model.notes),
    ]


_EXPRESSION_UNITS = {"strength": "strengths 0 to 1", "deviation": "standard deviations"}


@model_app.command("convert")
def model_convert(
    source: Annotated[Path, typer.Argument(exists=True, help="File or folder of a face model; see `mien model list`.")],
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", callback=suffixed(".safetensors"), help="The .safetensors file to write.")
    ],
    landmarks: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Lines of 'iBUG-number vertex', both from 0. For FLAME also its landmark embedding.",
        ),
    ] = None,
    blendshapes: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Blendshape file of an eos model.")
    ] = None,
    front: Annotated[bool, typer.Option("--front", help="Cut BFM 2009 to Deep3DFaceRecon's 35,709 vertices.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Convert a face model of another project into a file that all of mien can use."""
    from mien.morphable import load_model, save_model
    from mien.morphable.formats import read_model
    from mien.registration import complete
    from mien.registration.landmark_file import with_landmarks

    _make_place(out)
    with activity("reading", quiet=quiet):
        model = read_model(source, landmarks=landmarks, blendshapes=blendshapes, front=front)
        model = with_landmarks(model, landmarks)
    with activity("registering the packaged model to it", quiet=quiet):
        converted = complete(model, load_model())
    save_model(converted, out)
    print_values(
        ("model", f"{converted.name}: {len(converted.mean)} vertices"),
        ("licence", converted.licence),
        *(("completed", note) for note in converted.notes),
    )
    stdout().print(Text(f"written to {printable(str(out))}"), soft_wrap=True)


def _make_place(out: Path) -> None:
    """Make the folder of the model before the work starts, so that errors come early."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another place with -o") from error


@model_app.command("list")
def model_list() -> None:
    """List the face models that mien can use: those here, and those that can be obtained from their authors."""
    from mien.morphable.formats import FAMILIES
    from mien.morphable.registry import converted_models, models_folder

    table = plain_table()
    table.add_row(Text("mien-face"), Text("packaged, free"))
    for path in converted_models():
        table.add_row(Text(printable(path.stem)), Text(printable(f"converted: {path}")))
    for family in FAMILIES:
        table.add_row(Text(family.key), Text(f"{family.title}; {family.terms}"))
        table.add_row(Text(""), Text(f"convert: {family.files}", style="dim"))
        table.add_row(Text(""), Text(f"from: {family.page}", style="dim"))
    console = stdout()
    console.print(table)
    folder = printable(str(models_folder()))
    console.print(Text("\nmien downloads no models: obtain a file from its page, then run `mien model convert`."))
    console.print(Text(f"Models in {folder} ($MIEN_MODELS) can be given by name to --model and --to."), soft_wrap=True)


@model_app.command("phenotype")
def model_phenotype(
    file: Annotated[
        Path | None,
        typer.Argument(exists=True, dir_okay=False, help="JSON file with a phenotype of anny.", show_default=False),
    ] = None,
    *,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One value from 0 to 1, for example age=0.7; overrides FILE.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of face.glb, coefficients.json and more.")] = Path(
        "out/phenotype"
    ),
) -> None:
    """Make a face of the packaged model from a MakeHuman or anny phenotype: gender, age, muscle, weight, ancestry …

    The scales are those of anny: gender 0 is male and 1 female; age 1/3 is 12, 2/3 is 25 and 1 is 90 years. The default
    of all values is 0.5; without FILE and --set, this average person is made.
    """
    from mien.export.model_face import write_model_face
    from mien.morphable import load_model
    from mien.morphable.formats.anny import read_phenotype
    from mien.morphable.phenotypes import Phenotype, phenotype_identity

    person = Phenotype() if file is None else read_phenotype(file)
    with wrong_usage("--set"):
        given = {name: getattr(person, name) for name in Phenotype.names()} | dict(map(_setting, settings or []))
        person = Phenotype.of(given)
    model = load_model()
    write_model_face(phenotype_identity([person], model)[0], model, out)
    print_values(*((name, f"{getattr(person, name):g}") for name in Phenotype.names()), ("written to", str(out)))
    if file is None and not settings:
        stdout().print("\nThis is the average person. Describe another one with --set, for example --set age=0.9.")


def _setting(text: str) -> tuple[str, float]:
    """Name and number of NAME=NUMBER."""
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError as error:
        raise ConfigError(
            f"{text!r}: write it as NAME=NUMBER with a number from 0 to 1, for example age=0.7"
        ) from error
