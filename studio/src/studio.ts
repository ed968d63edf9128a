/** The page of the studio: photo in, head out. */

import "./style.css";
import "./studio.css";
import * as api from "./api";
import { button, element, lookAndViewButtons } from "./controls";
import { Comparison } from "./compare";
import { ExpressionPanel } from "./panel";
import { PhotoView } from "./photo";
import { hint, ShapePanel } from "./shape";
import { type Look, Viewer } from "./viewer";

const STEP_WORDS: Record<api.Step, string> = { network: "First estimate", fit: "Fitted", detail: "Fitted, with detail" };
/** Words for a stage, and where it begins and ends on the way, by its usual share of the time. */
const STAGES: Record<string, [string, number, number]> = {
  reading: ["Reading the photo", 0, 0.04],
  perception: ["Finding faces", 0.04, 0.1],
  network: ["Estimating the head", 0.1, 0.14],
  landmarks: ["Fitting landmarks", 0.14, 0.2],
  "light and albedo": ["Fitting the light", 0.2, 0.25],
  photometric: ["Fitting the photo", 0.25, 0.55],
  maps: ["Adding detail", 0.55, 0.8],
  writing: ["Writing files", 0, 0], // after each step
};
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
  "coefficients.json": "Coefficients, JSON",
  "reconstruction.npz": "All arrays, NPZ",
};

/** The first ones are buttons; the others lie below them. */
const MAIN_FILES = 5;

type Mode = "head" | "over" | "compare" | "landmarks";

class Studio {
  readonly #viewer = new Viewer(element<HTMLCanvasElement>("stage"));
  readonly #panel = new ExpressionPanel(this.#viewer, element("presets"), element("sliders"));
  readonly #shape = new ShapePanel(this.#viewer, element("shape"), () => void this.#reshape());
  readonly #comparison = new Comparison(
    this.#viewer,
    element<HTMLCanvasElement>("other-stage"),
    element<HTMLSelectElement>("compared"),
    element("compared-note"),
    STEP_WORDS,
    () => this.#panel.weights,
  );
  readonly #photo = new PhotoView(
    element<HTMLImageElement>("photo"),
    document.getElementById("drawing") as unknown as SVGSVGElement,
    (face) => void this.#choose(face),
    (count) => (element<HTMLButtonElement>("refit").disabled = count === 0),
  );
  #job = "";
  #heads = new Map<number, api.FaceHead>();
  #face = 0;
  #local = "";
  #stop = () => {};
  #shown = Promise.resolve();

  start(): void {
    this.#modes(lookAndViewButtons(this.#viewer, element("looks"), element("views")));
    this.#inputs();
    this.#light();
    element("refit").addEventListener("click", () => void this.#run(() => api.pin(this.#job, this.#photo.placed), false));
    this.#wipe();
    void api.examples().then((names) => {
      element("examples").append(...names.map((name, k) => this.#example(name, `Example ${k + 1} of ${names.length}`)));
    });
    const job = new URLSearchParams(location.hash.slice(1)).get("job");
    if (job) this.#listen(job, true); // the page was loaded again in the middle
    this.#state(job ? "working" : "empty");
  }

  #inputs(): void {
    const chooser = element<HTMLInputElement>("file");
    chooser.addEventListener("change", () => this.#open(chooser.files?.[0]));
    element("choose").addEventListener("click", () => chooser.click());
    element("again").addEventListener("click", () => chooser.click());
    element("camera").addEventListener("click", () => void this.#webcam());
    const zone = document.body;
    zone.addEventListener("dragover", (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
    zone.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) zone.classList.remove("over");
    });
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      zone.classList.remove("over");
      this.#open(event.dataTransfer?.files[0]);
    });
    document.addEventListener("paste", (event) => this.#open(event.clipboardData?.files[0]));
  }

  #example(name: string, label: string): HTMLElement {
    const address = `/studio/examples/${encodeURIComponent(name)}`;
    const made = button("", async () => this.#open(await (await fetch(address)).blob()));
    made.append(Object.assign(document.createElement("img"), { src: address, alt: label }));
    return made;
  }

  async #webcam(): Promise<void> {
    const video = element<HTMLVideoElement>("video");
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user" } });
    } catch {
      this.#say("The webcam cannot be used: the browser refuses it, or there is none.", true);
      return;
    }
    await video.play();
    this.#state("camera");
    this.#say("Look into the camera");
    const stop = () => (video.srcObject as MediaStream).getTracks().forEach((track) => track.stop());
    element("leave-webcam").onclick = () => {
      stop();
      this.#state("empty");
    };
    element("snap").onclick = () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      canvas.getContext("2d")?.drawImage(video, 0, 0);
      stop();
      canvas.toBlob((photo) => this.#open(photo ?? undefined), "image/jpeg", 0.95);
    };
  }

  #open(photo: Blob | undefined): void {
    if (!photo) return;
    URL.revokeObjectURL(this.#local);
    this.#local = URL.createObjectURL(photo);
    this.#photo.show(this.#local);
    void this.#run(() => api.submit(photo), true);
  }

  async #run(submit: () => Promise<string>, fresh: boolean): Promise<void> {
    this.#stop();
    if (fresh) this.#forget();
    this.#state("working");
    this.#say("Sending the photo");
    try {
      this.#listen(await submit(), fresh);
    } catch (error) {
      this.#fail(error instanceof Error ? error.message : String(error));
    }
  }

  /** Nothing of the earlier photo may stand beside the new one. */
  #forget(): void {
    delete document.body.dataset["head"];
    element("step").textContent = "The head comes in a moment";
    this.#panelled(false);
    this.#heads.clear();
    this.#face = 0;
    element("faces").replaceChildren();
    element("notes").replaceChildren();
  }

  #panelled(usable: boolean): void {
    document.querySelector("aside")!.inert = !usable;
  }

  #listen(job: string, fresh: boolean): void {
    this.#job = job;
    if (fresh) this.#forget();
    this.#done = 0;
    element("downloads").replaceChildren(hint("The files come with the last step."));
    element<HTMLButtonElement>("refit").disabled = true;
    history.replaceState(null, "", `#job=${job}`);
    this.#stop = api.listen(job, {
      stage: (stage, share) => this.#progress(stage, share),
      detected: (found) => this.#detected(found),
      head: (head) => {
        this.#heads.set(head.face, head);
        this.#shown = this.#shown.then(() => this.#head(head));
      },
      finished: (warnings) => {
        this.#shown = this.#shown.then(() => {
          this.#state("done");
          this.#say(warnings.length ? warnings.join(" ") : "Done", warnings.length > 0);
        });
      },
      failed: (reason) => this.#fail(reason),
    });
  }

  #detected(found: api.Detected): void {
    this.#photo.show(api.photoAddress(this.#job));
    this.#photo.outline(found.width, found.height, found.faces);
    this.#photo.choose(this.#face);
    document.body.style.setProperty("--aspect", String(found.width / found.height));
    const count = found.faces.length;
    this.#say(count === 1 ? "One face found" : `${count} faces found`);
    if (count < 2) return;
    const buttons = found.faces.map((_, k) => button(`Face ${k + 1}`, () => void this.#choose(k)));
    element("faces").replaceChildren(...buttons);
    this.#pressFace();
  }

  async #head(head: api.FaceHead): Promise<void> {
    if (this.#heads.get(head.face) !== head) return; // a better one has come, or another photo
    if (head.face === this.#face) await this.#show(head);
  }

  async #choose(face: number): Promise<void> {
    this.#face = face;
    this.#photo.choose(face);
    this.#pressFace();
    const head = this.#heads.get(face);
    if (head) await this.#show(head);
  }

  async #show(head: api.FaceHead): Promise<void> {
    const answer = await fetch(api.fileAddress(this.#job, head.face, api.stepFile(head.step)));
    if (!answer.ok) return; // the job has expired
    await this.#viewer.load(await answer.arrayBuffer());
    this.#panel.refresh();
    this.#shape.refresh();
    document.body.dataset["head"] = head.step;
    this.#panelled(true);
    element("step").textContent = STEP_WORDS[head.step];
    element("notes").replaceChildren(...head.notes.map((note) => paragraph(note)));
    if (this.#mode === "over") this.#viewer.setPhotoCamera(head);
    if (this.#mode === "compare") await this.#compare();
    if (head.step === "detail") this.#downloads(this.#job, head);
  }

  async #compare(): Promise<void> {
    const head = this.#heads.get(this.#face);
    if (head) await this.#comparison.refresh(this.#job, head);
  }

  /** Let the server write the files of the face with the present shape, and offer these. */
  async #reshape(): Promise<void> {
    this.#say("Writing the files of this shape");
    try {
      const job = await api.reshape(this.#job, this.#face, this.#shape.strengths);
      api.listen(job, {
        stage: () => {},
        detected: () => {},
        head: (head) => this.#downloads(job, head),
        finished: () => this.#say("The downloads are of the changed shape now"),
        failed: (reason) => this.#say(reason, true),
      });
    } catch (error) {
      this.#say(error instanceof Error ? error.message : String(error), true);
    }
  }

  #downloads(job: string, head: api.FaceHead): void {
    const steps = api.STEPS.map(api.stepFile);
    const known = Object.keys(FILE_WORDS).filter((name) => head.files.includes(name));
    const names = [...known, ...head.files.filter((name) => !known.includes(name) && !steps.includes(name))];
    element("downloads").dataset["job"] = job;
    const links = names.map((name, k) => {
      const link = document.createElement("a");
      link.href = api.fileAddress(job, head.face, name);
      link.download = name;
      link.className = k === 0 ? "button primary" : "button";
      link.textContent = FILE_WORDS[name] ?? name;
      return link;
    });
    const main = Object.keys(FILE_WORDS).slice(0, MAIN_FILES).filter((name) => head.files.includes(name)).length;
    const more = document.createElement("details");
    more.append(Object.assign(document.createElement("summary"), { textContent: "Textures, pictures and numbers" }));
    more.append(row(links.slice(main)));
    element("downloads").replaceChildren(row(links.slice(0, main)), more);
  }

  #mode: Mode = "head";

  #modes(chooseLook: (look: Look) => void): void {
    let before: Look = this.#viewer.look;
    const words: Record<Mode, string> = { head: "Head", over: "Over the photo", compare: "Compare", landmarks: "Landmarks" };
    const buttons = (Object.keys(words) as Mode[]).map((mode) =>
      button(words[mode], () => {
        // Over its photo a head is compared by its colours there.
        if (mode === "over" && this.#mode !== "over") {
          before = this.#viewer.look;
          chooseLook("photo");
        } else if (mode !== "over" && this.#mode === "over") chooseLook(before);
        this.#mode = mode;
        document.body.dataset["mode"] = mode;
        buttons.forEach((one) => one.setAttribute("aria-pressed", String(one.textContent === words[mode])));
        this.#photo.edit(mode === "landmarks");
        this.#viewer.setPhotoCamera(mode === "over" ? (this.#heads.get(this.#face) ?? null) : null);
        if (mode === "compare") void this.#compare();
      }),
    );
    buttons.forEach((one, k) => one.setAttribute("aria-pressed", String(k === 0)));
    element("modes").append(...buttons);
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

  #light(): void {
    const [side, height] = [element<HTMLInputElement>("light-side"), element<HTMLInputElement>("light-height")];
    const move = () => this.#viewer.setLight(side.valueAsNumber, height.valueAsNumber);
    side.addEventListener("input", move);
    height.addEventListener("input", move);
  }

  #done = 0;

  #progress(stage: string, share: number): void {
    const [words, begin, end] = STAGES[stage] ?? [stage, 0, 0];
    this.#done = Math.max(this.#done, begin + share * (end - begin)); // it never goes back
    element<HTMLProgressElement>("progress").value = this.#done;
    this.#say(words);
  }

  #pressFace(): void {
    [...element("faces").children].forEach((one, k) => one.setAttribute("aria-pressed", String(k === this.#face)));
  }

  #state(state: "empty" | "camera" | "working" | "done" | "failed"): void {
    document.body.dataset["state"] = state;
  }

  #say(text: string, alarming = false): void {
    element("status").textContent = text;
    element("status").classList.toggle("alarming", alarming);
  }

  #fail(reason: string): void {
    this.#state("failed");
    element("trouble").textContent = `The head could not be made: ${reason}`;
    this.#say(`The head could not be made: ${reason}`, true);
  }
}

function row(parts: HTMLElement[]): HTMLElement {
  const made = document.createElement("div");
  made.className = "row";
  made.append(...parts);
  return made;
}

function paragraph(text: string): HTMLElement {
  const made = document.createElement("p");
  made.textContent = text;
  return made;
}

new Studio().start();
