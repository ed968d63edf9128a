/** What is shown: the head beside its photo, over it, beside another head, or the landmarks. */

import { button, element } from "./controls";
import type { Look, PhotoCamera, Viewer } from "./viewer";

export type Mode = "head" | "over" | "compare" | "landmarks";
const WORDS: Record<Mode, string> = { head: "Head", over: "Over the photo", compare: "Compare", landmarks: "Landmarks" };

export class Modes {
  #mode: Mode = "head";
  #before: Look;
  readonly #buttons: Record<Mode, HTMLButtonElement>;

  /**
   * @param chooseLook Presses the button of a look.
   * @param camera Returns the camera of the shown photo or video.
   * @param onChange Is called after each choice.
   */
  constructor(
    readonly viewer: Viewer,
    readonly chooseLook: (look: Look) => void,
    readonly camera: () => PhotoCamera | null,
    readonly onChange: (mode: Mode) => void,
  ) {
    this.#before = viewer.look;
    const made = (Object.keys(WORDS) as Mode[]).map((mode): [Mode, HTMLButtonElement] => {
      const one = button(WORDS[mode], () => this.choose(mode));
      one.id = `mode-${mode}`;
      return [mode, one];
    });
    this.#buttons = Object.fromEntries(made) as Record<Mode, HTMLButtonElement>;
    element("modes").append(...Object.values(this.#buttons));
    this.#press();
    this.#wipe();
  }

  get mode(): Mode {
    return this.#mode;
  }

  /** Name what the head lies over. */
  name(medium: "photo" | "video"): void {
    this.#buttons.over.textContent = `Over the ${medium}`;
  }

  choose(mode: Mode): void {
    // Over its photo a head is compared by its colours there.
    if (mode === "over" && this.#mode !== "over") {
      this.#before = this.viewer.look;
      this.chooseLook("photo");
    } else if (mode !== "over" && this.#mode === "over") this.chooseLook(this.#before);
    this.#mode = mode;
    document.body.dataset["mode"] = mode;
    this.#press();
    if (mode !== "over") this.viewer.setPhotoCamera(null);
    this.headChanged();
    this.onChange(mode);
  }

  /** Another head is seen through its own camera. */
  headChanged(): void {
    if (this.#mode === "over") this.viewer.setPhotoCamera(this.camera());
  }

  #press(): void {
    for (const [mode, one] of Object.entries(this.#buttons)) one.setAttribute("aria-pressed", String(mode === this.#mode));
  }

  /** The boundary between photo and head: by its slider, or dragged on the picture. */
  #wipe(): void {
    const [slider, view] = [element<HTMLInputElement>("wipe"), element("view")];
    const move = () => document.body.style.setProperty("--wipe", `${slider.value}%`);
    slider.addEventListener("input", move);
    const drag = (event: PointerEvent) => {
      if (this.#mode !== "over" || event.buttons !== 1 || event.shiftKey) return;
      const { left, width } = view.getBoundingClientRect();
      slider.valueAsNumber = (100 * (event.clientX - left)) / width;
      move();
    };
    view.addEventListener("pointerdown", drag);
    view.addEventListener("pointermove", drag);
  }
}
