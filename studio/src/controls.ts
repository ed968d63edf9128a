/** The buttons of looks and views, which the page and the single file share. */

import { LOOKS, type Look, VIEWS, type View, type Viewer } from "./viewer";

const LOOK_WORDS: Record<Look, string> = {
  relit: "Relit",
  photo: "Photo colours",
  albedo: "Albedo",
  clay: "Clay",
  wireframe: "Wireframe",
};

/** Fill the bars with buttons, one pressed at a time for the looks. */
export function lookAndViewButtons(viewer: Viewer, looks: HTMLElement, views: HTMLElement): void {
  const buttons = LOOKS.map((look) =>
    button(LOOK_WORDS[look], () => {
      viewer.setLook(look);
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === buttons[LOOKS.indexOf(look)]));
    }),
  );
  buttons.forEach((one, index) => one.setAttribute("aria-pressed", String(index === 0)));
  looks.append(...buttons);
  for (const view of Object.keys(VIEWS) as View[]) {
    views.append(button(view.charAt(0).toUpperCase() + view.slice(1), () => viewer.setView(view)));
  }
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
