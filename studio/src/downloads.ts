/** The files of the shown head. */

import * as api from "./api";
import { hint } from "./shape";

/** In the order of the page. */
const FILE_WORDS: Record<string, string> = {
  "head.glb": "GLB",
  "head.vrm": "VRM",
  "head.usdz": "USDZ",
  "head.obj": "OBJ",
  "head.ply": "PLY",
  "head.mtl": "Materials of the OBJ",
  "head_texture.png": "Texture of the OBJ",
  "texture.png": "Texture",
  "albedo.png": "Albedo",
  "normals.png": "Normal map",
  "displacement.png": "Displacement",
  "texture_offset.png": "Texture offset",
  "overlay.png": "Overlay",
  "sheet.png": "Contact sheet",
  "blendshapes.csv": "Blendshapes, CSV",
  "tracking.npz": "All numbers, NPZ",
  "overlay.mp4": "Overlay video",
  "coefficients.json": "Coefficients, JSON",
  "reconstruction.npz": "All arrays, NPZ",
};

/** The first ones are buttons; the others lie below them. */
const MAIN_FILES = 5;

export class Downloads {
  constructor(readonly place: HTMLElement) {}

  /** There are no files yet. */
  clear(): void {
    this.place.replaceChildren(hint("The files come with the last step."));
  }

  /** Offer the files of a head. */
  head(job: string, head: api.FaceHead): void {
    const steps = api.STEPS.map(api.stepFile);
    const known = Object.keys(FILE_WORDS).filter((name) => head.files.includes(name));
    const names = [...known, ...head.files.filter((name) => !known.includes(name) && !steps.includes(name))];
    this.place.dataset["job"] = job;
    const main = Object.keys(FILE_WORDS).slice(0, MAIN_FILES).filter((name) => head.files.includes(name)).length;
    this.files(names.map((name) => [name, api.fileAddress(job, head.face, name)]), main);
  }

  /** Offer files by name and address; all but the first ones lie below these. */
  files(files: [string, string][], main = files.length): void {
    const links = files.map(([name, address], k) => {
      const link = document.createElement("a");
      link.href = address;
      link.download = name;
      link.className = k === 0 ? "button primary" : "button";
      link.textContent = FILE_WORDS[name] ?? name;
      return link;
    });
    if (main === links.length) return this.place.replaceChildren(row(links));
    const more = document.createElement("details");
    more.append(Object.assign(document.createElement("summary"), { textContent: "Textures, pictures and numbers" }));
    more.append(row(links.slice(main)));
    this.place.replaceChildren(row(links.slice(0, main)), more);
  }
}

function row(parts: HTMLElement[]): HTMLElement {
  const made = document.createElement("div");
  made.className = "row";
  made.append(...parts);
  return made;
}
