/** The buttons of looks and views, which the page and the single file share. */

import { LOOKS, type Look, type View, type Viewer } from "./viewer";

const LOOK_WORDS: Record<Look, string> = {
  relit: "Relit",
  photo: "Photo colours",
  albedo: "Albedo",
  clay: "Clay",
  wireframe: "Wireframe",
};

/** Short enough for five buttons on a phone; the full name is told to screen readers. */
const VIEW_WORDS: Record<View, string> = {
  front: "Front",
  "three-quarter": "Quarter",
  "left profile": "Left",
  "right profile": "Right",
  back: "Back",
};

/** Fill the bars with buttons, one pressed at a time for the looks. Returns how to choose a look. */
export function lookAndViewButtons(viewer: Viewer, looks: HTMLElement, views: HTMLElement): (look: Look) => void {
  const choose = (look: Look) => {
    viewer.setLook(look);
    buttons.forEach((one, index) => one.setAttribute("aria-pressed", String(LOOKS[index] === look)));
  };
  const buttons = LOOKS.map((look) => button(LOOK_WORDS[look], () => choose(look)));
  looks.append(...buttons);
  choose(viewer.look);
  for (const [view, short] of Object.entries(VIEW_WORDS) as [View, string][]) {
    const made = button(short, () => viewer.setView(view));
    made.setAttribute("aria-label", view.charAt(0).toUpperCase() + view.slice(1));
    views.append(made);
  }
  return choose;
}

export function button(text: string, action: () => void): HTMLButtonElement {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", action);
  return made;
}

/** An element of the page that must be there. */
export function element<T extends HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element #${id}.`);
  return found as T;
}
