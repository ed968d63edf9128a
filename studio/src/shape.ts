/** The sliders of the shape: identity components and phenotypes. They act at once, as morph targets. */

import { button } from "./controls";
import type { Viewer } from "./viewer";

const PHENOTYPES: Record<string, string> = {
  "phenotype:age": "Younger – older",
  "phenotype:gender": "Male – female",
  "phenotype:weight": "Thin – heavy",
};

export class ShapePanel {
  readonly #sliders = new Map<string, HTMLInputElement>();
  readonly #reset = button("Reset the shape", () => this.reset());
  readonly #make: HTMLButtonElement;

  /**
   * @param make Makes the files of the present shape.
   */
  constructor(
    readonly viewer: Viewer,
    readonly place: HTMLElement,
    make: () => void,
  ) {
    this.#make = button("Make files of this shape", make);
    this.#make.id = "make-shape";
  }

  /** Strengths other than zero. */
  get strengths(): Map<string, number> {
    const all = [...this.#sliders].map(([name, slider]) => [name, slider.valueAsNumber] as const);
    return new Map(all.filter(([, value]) => value !== 0));
  }

  /** Make the sliders of the viewer's head, all at zero. */
  refresh(): void {
    this.#sliders.clear();
    const names = this.viewer.shapes;
    if (names.length === 0) {
      this.place.replaceChildren(hint("The sliders come with the last step."));
      return;
    }
    const people = names.filter((name) => name in PHENOTYPES);
    const others = names.filter((name) => !(name in PHENOTYPES));
    const more = document.createElement("details");
    const summary = document.createElement("summary");
    summary.textContent = "Identity components";
    more.append(summary, ...others.map((name) => this.#slider(name)));
    const row = document.createElement("div");
    row.className = "row";
    row.append(this.#reset, this.#make);
    this.place.replaceChildren(...people.map((name) => this.#slider(name)), more, row);
    this.#enable();
  }

  /** Back to the person of the photo. */
  reset(): void {
    for (const [name, slider] of this.#sliders) {
      slider.value = "0";
      this.viewer.setStrength(name, 0);
    }
    this.#enable();
  }

  #slider(name: string): HTMLElement {
    const label = document.createElement("label");
    const text = document.createElement("span");
    text.textContent = PHENOTYPES[name] ?? `Component ${name.split(":")[1]}`;
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: "-1", max: "1", step: "0.01" });
    slider.value = "0";
    slider.dataset["shape"] = name;
    slider.addEventListener("input", () => {
      this.viewer.setStrength(name, slider.valueAsNumber);
      this.#enable();
    });
    this.#sliders.set(name, slider);
    label.append(text, slider);
    return label;
  }

  #enable(): void {
    this.#reset.disabled = this.#make.disabled = this.strengths.size === 0;
  }
}

export function hint(text: string): HTMLElement {
  const made = document.createElement("p");
  made.className = "hint";
  made.textContent = text;
  return made;
}
