/** The sliders of the expressions, with presets. */

import type { Viewer } from "./viewer";

/** Expressions that people know, as strengths of ARKit's blendshapes; both sides where no side is named. */
const PRESETS: Record<string, Record<string, number>> = {
  Smile: { mouthSmile: 0.75, cheekSquint: 0.5, eyeSquint: 0.25, mouthDimple: 0.2 },
  Laugh: { mouthSmile: 0.9, jawOpen: 0.35, cheekSquint: 0.7, eyeSquint: 0.5, mouthUpperUp: 0.35 },
  Surprise: { browInnerUp: 0.9, browOuterUp: 0.8, eyeWide: 0.7, jawOpen: 0.4 },
  Anger: { browDown: 0.9, noseSneer: 0.5, eyeSquint: 0.3, mouthPress: 0.5, mouthFrown: 0.3 },
  Sadness: { browInnerUp: 0.8, mouthFrown: 0.7, mouthShrugLower: 0.4, eyeSquint: 0.2 },
  Disgust: { noseSneer: 0.9, mouthUpperUp: 0.5, browDown: 0.4, cheekSquint: 0.4 },
  Kiss: { mouthPucker: 0.9, mouthFunnel: 0.2 },
  Blink: { eyeBlink: 1 },
  "Look left": { eyeLookOutLeft: 0.8, eyeLookInRight: 0.8 },
  Tongue: { jawOpen: 0.4, tongueOut: 0.9 },
};

const GROUPS: [string, RegExp][] = [
  ["Brows", /^brow/],
  ["Eyes", /^eye/],
  ["Cheeks and nose", /^(cheek|nose)/],
  ["Jaw and tongue", /^(jaw|tongue)/],
  ["Mouth", /^mouth/],
  ["Other", /./],
];

export class ExpressionPanel {
  readonly #sliders = new Map<string, HTMLInputElement>();

  constructor(
    readonly viewer: Viewer,
    readonly presets: HTMLElement,
    readonly sliders: HTMLElement,
  ) {
    for (const name of ["As photographed", "Neutral", ...Object.keys(PRESETS)]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => this.show(name));
      presets.append(button);
    }
  }

  /** Strengths as the sliders stand. */
  get weights(): Map<string, number> {
    return new Map([...this.#sliders].map(([name, slider]) => [name, slider.valueAsNumber]));
  }

  /** Make the sliders of the viewer's head. */
  refresh(): void {
    this.#sliders.clear();
    const left = new Set(this.viewer.expressions);
    const groups = GROUPS.map(([title, pattern]) => {
      const names = [...left].filter((name) => pattern.test(name));
      for (const name of names) left.delete(name);
      return this.#group(title, names);
    });
    this.sliders.replaceChildren(...groups.filter((group) => group !== null));
  }

  /** Show an expression by its name among the presets. */
  show(name: string): void {
    const preset = PRESETS[name] ?? {};
    for (const [expression, slider] of this.#sliders) {
      const value =
        name === "As photographed"
          ? this.viewer.photographed.get(expression)
          : (preset[expression] ?? preset[expression.replace(/(Left|Right)$/, "")]);
      this.#set(slider, expression, value ?? 0);
    }
  }

  #group(title: string, names: string[]): HTMLElement | null {
    if (names.length === 0) return null;
    const group = document.createElement("details");
    group.open = title === "Mouth" || title === "Eyes";
    const summary = document.createElement("summary");
    summary.textContent = title;
    group.append(summary, ...names.map((name) => this.#slider(name)));
    return group;
  }

  #slider(name: string): HTMLElement {
    const label = document.createElement("label");
    const text = document.createElement("span");
    text.textContent = words(name);
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: "0", max: "1", step: "0.01" });
    slider.value = String(this.viewer.photographed.get(name) ?? 0);
    slider.dataset["expression"] = name;
    slider.addEventListener("input", () => this.viewer.setStrength(name, slider.valueAsNumber));
    this.#sliders.set(name, slider);
    label.append(text, slider);
    return label;
  }

  #set(slider: HTMLInputElement, name: string, value: number): void {
    slider.value = String(value);
    this.viewer.setStrength(name, value);
  }
}

/** "mouthSmileLeft" as "Mouth smile left". */
function words(name: string): string {
  const text = name.replace(/([A-Z])/g, (letter) => ` ${letter.toLowerCase()}`);
  return text.charAt(0).toUpperCase() + text.slice(1);
}
