/** The page of the studio: photo in, head out. */

import "./style.css";
import "./studio.css";
import * as api from "./api";
import { button, element, lookAndViewButtons } from "./controls";
import { Comparison } from "./compare";
import { ExpressionPanel } from "./panel";
import { PhotoView } from "./photo";
import { ShapePanel } from "./shape";
import { Viewer } from "./viewer";

const STEP_WORDS: Record<api.Step, string> = { network: "First estimate", fit: "Fitted", detail: "Fitted, with detail" };
const STAGES: Record<string, string> = {
  reading: "Reading the photo",
  perception: "Finding faces",
  landmarks: "Fitting landmarks",
  lighting: "Fitting the light",
  photometric: "Fitting the photo",
  maps: "Adding detail",
  writing: "Writing files",
};
const FILE_WORDS: Record<string, string> = {
  "head.glb": "GLB",
  "head.obj": "OBJ",
  "head.mtl": "Materials of the OBJ",
  "head_texture.png": "Texture of the OBJ",
  "head.ply": "PLY",
  "head.usdz": "USDZ",
  "head.vrm": "VRM",
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

type Mode = "head" | "over" | "compare" | "landmarks";

class Studio {
  readonly #viewer = new Viewer(element<HTMLCanvasElement>("stage"));
  readonly #panel = new ExpressionPanel(this.#viewer, element("presets"), element("sliders"));
  readonly #shape = new ShapePanel(this.#viewer, element("shape"), () => void this.#reshape());
  readonly #comparison = new Comparison(
    this.#viewer,
    element<HTMLCanvasElement>("other-stage"),
    element<HTMLSelectElement>("compared"),
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
    lookAndViewButtons(this.#viewer, element("looks"), element("views"));
    this.#modes();
    this.#inputs();
    this.#light();
    element("refit").addEventListener("click", () => void this.#run(() => api.pin(this.#job, this.#photo.placed), false));
    element<HTMLInputElement>("wipe").addEventListener("input", (event) => {
      document.body.style.setProperty("--wipe", `${(event.target as HTMLInputElement).value}%`);
    });
    void api.examples().then((names) => {
      for (const name of names) element("examples").append(this.#example(name));
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

  #example(name: string): HTMLElement {
    return button(`Example: ${name.replace(/\.\w+$/, "")}`, async () => {
      this.#open(await (await fetch(`/studio/examples/${encodeURIComponent(name)}`)).blob());
    });
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
    element("snap").onclick = () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      canvas.getContext("2d")?.drawImage(video, 0, 0);
      for (const track of (video.srcObject as MediaStream).getTracks()) track.stop();
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
    this.#state("working");
    this.#say("Sending the photo");
    try {
      this.#listen(await submit(), fresh);
    } catch (error) {
      this.#fail(error instanceof Error ? error.message : String(error));
    }
  }

  #listen(job: string, fresh: boolean): void {
    this.#job = job;
    if (fresh) {
      this.#heads.clear();
      this.#face = 0;
      element("faces").replaceChildren();
    }
    element("downloads").replaceChildren();
    element<HTMLButtonElement>("refit").disabled = true;
    history.replaceState(null, "", `#job=${job}`);
    this.#stop = api.listen(job, {
      stage: (stage, share) => this.#progress(stage, share),
      detected: (found) => this.#detected(found),
      head: (head) => {
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
    this.#heads.set(head.face, head);
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
    const names = head.files.filter((name) => !steps.includes(name));
    element("downloads").dataset["job"] = job;
    const links = names.map((name) => {
      const link = document.createElement("a");
      link.href = api.fileAddress(job, head.face, name);
      link.download = name;
      link.className = "button";
      link.textContent = FILE_WORDS[name] ?? name;
      return link;
    });
    element("downloads").replaceChildren(...links);
  }

  #mode: Mode = "head";

  #modes(): void {
    const words: Record<Mode, string> = { head: "Head", over: "Over the photo", compare: "Compare", landmarks: "Landmarks" };
    const buttons = (Object.keys(words) as Mode[]).map((mode) =>
      button(words[mode], () => {
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

  #light(): void {
    const [side, height] = [element<HTMLInputElement>("light-side"), element<HTMLInputElement>("light-height")];
    const move = () => this.#viewer.setLight(side.valueAsNumber, height.valueAsNumber);
    side.addEventListener("input", move);
    height.addEventListener("input", move);
  }

  #progress(stage: string, share: number): void {
    element<HTMLProgressElement>("progress").value = share;
    this.#say(STAGES[stage] ?? stage);
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
    this.#say(reason.charAt(0).toUpperCase() + reason.slice(1), true);
  }
}

function paragraph(text: string): HTMLElement {
  const made = document.createElement("p");
  made.textContent = text;
  return made;
}

new Studio().start();
