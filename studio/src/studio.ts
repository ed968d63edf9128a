/** The page of the studio: photos in, heads out. */

import "./style.css";
import "./studio.css";
import "./several.css";
import * as api from "./api";
import { button, element, lookAndViewButtons } from "./controls";
import { Comparison } from "./compare";
import { Inputs } from "./inputs";
import { ExpressionPanel } from "./panel";
import { PhotoView } from "./photo";
import { hint, ShapePanel } from "./shape";
import { Strip } from "./strip";
import { VideoView } from "./video";
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
  "blendshapes.csv": "Blendshapes, CSV",
  "tracking.npz": "All numbers, NPZ",
  "overlay.mp4": "Overlay video",
  "coefficients.json": "Coefficients, JSON",
  "reconstruction.npz": "All arrays, NPZ",
};

/** The first ones are buttons; the others lie below them. */
const MAIN_FILES = 5;
/** As many as the server takes of one person. */
const MOST_PHOTOS = 50;
/** How often the heads of other photos are asked for; a job that nobody asks for is stopped after 15 s. */
const LOOK_MS = 3000;

type Kind = "photo" | "person" | "video";
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
    (face) => this.#kind === "photo" && void this.#choose(face),
    (count) => (element<HTMLButtonElement>("refit").disabled = count === 0),
  );
  readonly #strip = new Strip(element("strip"), (index) => void this.#chooseInStrip(index));
  #job = "";
  readonly #video = new VideoView(this.#viewer, (links) => this.#showDownloads(links));
  #kind: Kind = "photo";
  /** The jobs of photos that were sent together and become separate heads. */
  #jobs: string[] = [];
  #found = new Map<number, api.Detected>();
  #matched = new Map<number, api.Matched>();
  #heads = new Map<number, api.FaceHead>();
  #face = 0;
  #local: string[] = [];
  #stop = () => {};
  #shown = Promise.resolve();

  start(): void {
    this.#modes(lookAndViewButtons(this.#viewer, element("looks"), element("views")));
    new Inputs(
      (files) => this.#open(files),
      (state) => {
        this.#state(state);
        if (state === "camera") this.#say("Look into the camera");
      },
      (problem) => this.#say(problem, true),
    );
    this.#light();
    element("refit").addEventListener("click", () => void this.#run(() => api.pin(this.#job, this.#photo.placed), "photo", false));
    this.#wipe();
    element("stop").addEventListener("click", () => api.remove(this.#job)); // the event `cancelled` comes then
    this.#state("empty");
    setInterval(() => void this.#lookAtOthers(), LOOK_MS);
    void this.#goOn();
  }

  /** Where the page was before it was loaded again. */
  async #goOn(): Promise<void> {
    const place = new URLSearchParams(location.hash.slice(1));
    const job = place.get("job");
    if (!job) return;
    this.#state("working");
    const known = await api.state(job);
    if (!known) return this.#fail("there is no such job any more, or it has expired; send the photo again.");
    this.#jobs = place.get("jobs")?.split(",") ?? [];
    this.#job = job;
    if (known.kind === "person") this.#strip.fill(Math.max(...known.photos.map(({ photo }) => photo)) + 1);
    if (this.#jobs.length > 0) this.#showSeparate();
    if (known.kind === "video") this.#video.open(api.videoAddress(job));
    this.#listen(job, known.kind === "shape" ? "photo" : known.kind, true);
  }

  #open(files: Blob[]): void {
    this.#local.forEach((address) => URL.revokeObjectURL(address));
    this.#local = files.map((file) => URL.createObjectURL(file));
    // Nobody looks at these any more.
    if (this.#kind !== "photo" && document.body.dataset["state"] === "working") api.remove(this.#job);
    for (const job of this.#jobs) if (job) api.remove(job);
    this.#jobs = [];
    this.#stop();
    this.#video.close();
    const videos = files.filter(isVideo);
    this.#strip.fill(files.length > 1 && videos.length === 0 ? files.length : 0);
    if (videos.length > 0 && files.length > 1) return this.#fail("a video is opened by itself; choose it alone.");
    if (videos.length === 1) {
      this.#video.open(this.#local[0]!);
      void this.#run(() => api.submitVideo(files[0]!), "video", true);
      return;
    }
    if (files.length === 1) {
      this.#photo.show(this.#local[0]!);
      void this.#run(() => api.submit(files[0]!), "photo", true);
      return;
    }
    if (files.length > MOST_PHOTOS) {
      this.#strip.fill(0);
      return this.#fail(`these are ${files.length} photos; choose at most ${MOST_PHOTOS} at once.`);
    }
    this.#local.forEach((address, index) => this.#strip.picture(index, address));
    element("choice-title").textContent = `${files.length} photos: who is in them?`;
    element("same-person").onclick = () => this.#submitPerson(files);
    element("separate").onclick = () => void this.#submitSeparate(files);
    this.#say("Photos stay on this machine.");
    this.#state("choose");
    element("same-person").focus();
  }

  #submitPerson(photos: Blob[]): void {
    this.#photo.show(this.#local[0]!);
    const sent = (count: number) => this.#say(`Sending the photos: ${count} of ${photos.length}`);
    void this.#run(() => api.submitPerson(photos, sent), "person", true);
  }

  /** One job per photo; the first one is shown. */
  async #submitSeparate(photos: Blob[]): Promise<void> {
    const jobs: string[] = [];
    this.#jobs = jobs; // until other photos are opened
    this.#photo.show(this.#local[0]!);
    for (const [index, photo] of photos.entries()) {
      if (this.#jobs !== jobs) return;
      if (index === 0) {
        await this.#run(() => api.submit(photo).then((job) => (jobs.push(job), job)), "photo", true);
        if (jobs.length === 0) return;
        this.#strip.choose(0);
      } else {
        try {
          jobs.push(await api.submit(photo));
        } catch (error) {
          jobs.push("");
          this.#strip.say(index, error instanceof Error ? error.message : String(error), true);
        }
      }
      this.#remember();
    }
  }

  /** After the page was loaded again. */
  #showSeparate(): void {
    this.#strip.fill(this.#jobs.length);
    this.#jobs.forEach((job, index) => job && this.#strip.picture(index, api.photoAddress(job)));
    this.#strip.choose(this.#jobs.indexOf(this.#job));
  }

  /** Ask how far the photos are that are not shown. */
  async #lookAtOthers(): Promise<void> {
    const jobs = this.#jobs;
    for (const [index, job] of jobs.entries()) {
      if (job === "") continue;
      const known = await api.state(job);
      if (this.#jobs !== jobs) return;
      const words = { running: "At work", failed: "Failed", done: "" } as Record<string, string>;
      const state = known?.state ?? "failed";
      this.#strip.say(index, words[state] ?? `${(known?.position ?? 0) + 1}. in line`, state === "failed");
      if (known?.state === "done") this.#strip.picture(index, api.photoAddress(job));
    }
  }

  async #chooseInStrip(index: number): Promise<void> {
    if (this.#kind === "person") return this.#choose(index);
    const job = this.#jobs[index];
    if (!job || job === this.#job) return;
    this.#stop();
    this.#state("working");
    this.#photo.show(this.#local[index] ?? api.photoAddress(job));
    this.#listen(job, "photo", true);
    this.#strip.choose(index);
  }

  async #run(submit: () => Promise<string>, kind: Kind, fresh: boolean): Promise<void> {
    this.#stop();
    document.body.dataset["kind"] = kind;
    if (fresh) this.#forget();
    this.#state("working");
    this.#say(kind === "video" ? "Sending the video" : "Sending the photo");
    try {
      this.#listen(await submit(), kind, fresh);
    } catch (error) {
      this.#fail(error instanceof Error ? error.message : String(error));
    }
  }

  /** Nothing of the earlier photo may stand beside the new one. */
  #forget(): void {
    delete document.body.dataset["head"];
    document.body.removeAttribute("data-missing");
    element("step").textContent = "The head comes in a moment";
    this.#panelled(false);
    this.#heads.clear();
    this.#found.clear();
    this.#matched.clear();
    this.#face = 0;
    element("faces").replaceChildren();
    element("notes").replaceChildren();
  }

  #panelled(usable: boolean): void {
    document.querySelector("aside")!.inert = !usable;
  }

  #listen(job: string, kind: Kind, fresh: boolean): void {
    this.#job = job;
    this.#kind = kind;
    document.body.dataset["kind"] = kind;
    if (kind !== "photo" && this.#mode !== "over") element("mode-head").click();
    if (fresh) this.#forget();
    this.#done = 0;
    element("downloads").replaceChildren(hint("The files come with the last step."));
    element<HTMLButtonElement>("refit").disabled = true;
    this.#remember();
    const latest = new Map<number, api.FaceHead>();
    this.#stop = api.listen(job, {
      stage: (stage, share) => this.#progress(stage, share),
      detected: (found) => this.#detected(found),
      matched: (found) => this.#match(found),
      head: (head) => {
        latest.set(head.face, head);
        this.#shown = this.#shown.then(async () => {
          if (latest.get(head.face) === head) await this.#head(job, head); // else a better one has come meanwhile
        });
      },
      frames: (frames) => {
        const total = frames.total ?? 0;
        element<HTMLProgressElement>("progress").value = total > 0 ? frames.done / total : 0;
        this.#say(framesWords(frames));
      },
      video: ({ width, height }) => document.body.style.setProperty("--aspect", String(width / height)),
      person: (person) => {
        this.#shown = this.#shown.then(async () => {
          if (job !== this.#job) return;
          await this.#video.person(job, person);
          document.body.dataset["head"] = "detail";
          this.#panelled(true);
          element("step").textContent = "Tracked";
          if (this.#mode === "over") this.#overCamera();
        });
      },
      overlay: () => this.#video.overlay(job),
      finished: (warnings) => {
        this.#shown = this.#shown.then(() => {
          if (job !== this.#job) return;
          this.#state("done");
          this.#say(warnings.length ? warnings.join(" ") : "Done", warnings.length > 0);
        });
      },
      failed: (reason) => this.#fail(reason),
    });
  }

  /** Keep the place in the address, for when the page is loaded again. */
  #remember(): void {
    const others = this.#jobs.length > 0 ? `&jobs=${this.#jobs.join(",")}` : "";
    history.replaceState(null, "", `#job=${this.#job}${others}`);
  }

  #detected(found: api.Detected): void {
    this.#found.set(found.photo, found);
    if (this.#kind === "person") {
      this.#strip.picture(found.photo, api.personPhotoAddress(this.#job, found.photo));
      if (found.faces.length === 0) this.#strip.say(found.photo, "No face", true);
      if (found.photo === this.#face) this.#showPhoto();
      return;
    }
    this.#showPhoto();
    const count = found.faces.length;
    this.#say(count === 1 ? "One face found" : `${count} faces found`);
    if (count < 2) return;
    const buttons = found.faces.map((_, k) => button(`Face ${k + 1}`, () => void this.#choose(k)));
    element("faces").replaceChildren(...buttons);
    this.#pressFace();
  }

  /** The photo that is shown: of a person the chosen one, else the only one. */
  #showPhoto(): void {
    const person = this.#kind === "person";
    const found = this.#found.get(person ? this.#face : 0);
    if (!found) return;
    this.#photo.show(person ? api.personPhotoAddress(this.#job, found.photo) : api.photoAddress(this.#job));
    this.#photo.outline(found.width, found.height, found.faces);
    this.#photo.choose(person ? (this.#matched.get(this.#face)?.face ?? -1) : this.#face);
    document.body.style.setProperty("--aspect", String(found.width / found.height));
  }

  #match(found: api.Matched): void {
    this.#matched.set(found.photo, found);
    const weight = found.face === null ? "Left out" : `Counts ${Math.round(100 * found.weight)} %`;
    this.#strip.say(found.photo, found.best ? `Best, ${Math.round(100 * found.weight)} %` : weight, found.reason !== "");
    if (found.best) this.#shown = this.#shown.then(() => this.#choose(found.photo));
  }

  async #head(job: string, head: api.FaceHead): Promise<void> {
    if (job !== this.#job) return; // another photo was chosen meanwhile
    this.#heads.set(head.face, head);
    if (this.#kind === "person" && this.#heads.size === 1) await this.#choose(head.face);
    else if (head.face === this.#face) await this.#show(head);
  }

  async #choose(face: number): Promise<void> {
    if (this.#kind === "person" && !this.#strip.count) return;
    this.#face = face;
    const head = this.#heads.get(face);
    if (this.#kind === "person") {
      this.#strip.choose(face);
      this.#showPhoto();
      document.body.toggleAttribute("data-missing", !head);
      element("notes").replaceChildren(...this.#reasons().map(paragraph));
    } else {
      this.#photo.choose(face);
      this.#pressFace();
    }
    if (head) await this.#show(head);
  }

  /** What to say about the chosen photo of a person. */
  #reasons(): string[] {
    const reason = this.#matched.get(this.#face)?.reason ?? "";
    return reason === "" ? [] : [`Photo ${this.#face + 1}: ${reason.replace(/\.?$/, ".")}`];
  }

  async #show(head: api.FaceHead): Promise<void> {
    const answer = await fetch(api.fileAddress(this.#job, head.face, api.stepFile(head.step)));
    if (!answer.ok) return; // the job has expired
    if (head !== this.#heads.get(this.#face)) return; // another one was chosen meanwhile
    document.body.removeAttribute("data-missing");
    await this.#viewer.load(await answer.arrayBuffer());
    this.#panel.refresh();
    this.#shape.refresh();
    document.body.dataset["head"] = head.step;
    this.#panelled(true);
    element("step").textContent = this.#stepWords(head);
    element("notes").replaceChildren(...[...this.#reasons(), ...head.notes].map(paragraph));
    if (this.#mode === "over") this.#overCamera();
    if (this.#mode === "compare") await this.#compare();
    if (head.step === "detail") this.#downloads(this.#job, head);
  }

  #stepWords(head: api.FaceHead): string {
    if (this.#kind === "video") return "First estimate, from one frame";
    if (this.#kind === "photo") return STEP_WORDS[head.step];
    const used = [...this.#matched.values()].filter(({ face }) => face !== null).length;
    if (head.step === "network") return `First estimate, from photo ${head.face + 1} alone`;
    return `One head from ${used} photos, as in photo ${head.face + 1}`;
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
    const main = Object.keys(FILE_WORDS).slice(0, MAIN_FILES).filter((name) => head.files.includes(name)).length;
    this.#showDownloads(names.map((name) => [name, api.fileAddress(job, head.face, name)]), main);
  }

  /** Offer files by name and address; all but the first ones lie below these. */
  #showDownloads(files: [string, string][], main = files.length): void {
    const links = files.map(([name, address], k) => {
      const link = document.createElement("a");
      link.href = address;
      link.download = name;
      link.className = k === 0 ? "button primary" : "button";
      link.textContent = FILE_WORDS[name] ?? name;
      return link;
    });
    if (main === links.length) return element("downloads").replaceChildren(row(links));
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
        if (mode === "over") this.#overCamera();
        else this.#viewer.setPhotoCamera(null);
        if (mode === "compare") void this.#compare();
      }),
    );
    buttons.forEach((one, k) => (one.id = `mode-${Object.keys(words)[k]}`));
    buttons.forEach((one, k) => one.setAttribute("aria-pressed", String(k === 0)));
    element("modes").append(...buttons);
  }

  /** See the head through the camera of the photo or of the video. */
  #overCamera(): void {
    this.#viewer.setPhotoCamera(this.#viewer.motion?.photoCamera ?? this.#heads.get(this.#face) ?? null);
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
    this.#say(this.#kind === "video" ? words.replace("photo", "video") : words);
  }

  #pressFace(): void {
    [...element("faces").children].forEach((one, k) => one.setAttribute("aria-pressed", String(k === this.#face)));
  }

  #state(state: "empty" | "choose" | "camera" | "working" | "done" | "failed"): void {
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

function isVideo(file: Blob): boolean {
  return file.type.startsWith("video/") || /\.(mp4|m4v|mov|webm|mkv|avi)$/i.test(file instanceof File ? file.name : "");
}

function framesWords({ stage, done, total, per_second, seconds_left }: api.Frames): string {
  const words = stage.charAt(0).toUpperCase() + stage.slice(1).replace(/person (\d+)/, (_, k: string) => `person ${Number(k) + 1}`);
  const count = total === null ? (done > 0 ? `${done} frames` : "") : `${done} of ${total} frames`;
  const speed = per_second === null ? "" : `${per_second.toFixed(0)} per second`;
  const left = seconds_left === null ? "" : `${Math.ceil(seconds_left)} s left`;
  return [words, count, speed, left].filter((part) => part !== "").join(", ");
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
