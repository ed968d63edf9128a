/** Shows one head: orbit, looks, expressions, and a light that is dragged. */

import * as THREE from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import { RoomEnvironment } from "three/addons/environments/RoomEnvironment.js";

import { type Head, loadHead } from "./head";
import type { Motion } from "./motion";

export const LOOKS = ["relit", "photo", "albedo", "clay", "wireframe"] as const;
export type Look = (typeof LOOKS)[number];

export const VIEWS = { front: 0, "three-quarter": 35, "left profile": 90, "right profile": -90, back: 180 } as const;
export type View = keyof typeof VIEWS;

/** The camera of a photo: matrices of `coefficients.json`, row by row. */
export interface PhotoCamera {
  view: number[][];
  projection: number[][];
}

const FIELD_OF_VIEW_DEG = 25; // a portrait lens, which flatters no nose
const LIGHT_REACH_DEG = 85;

export class Viewer {
  readonly #renderer: THREE.WebGLRenderer;
  readonly #scene = new THREE.Scene();
  readonly #camera = new THREE.PerspectiveCamera(FIELD_OF_VIEW_DEG, 1, 0.05, 20);
  readonly #photoCamera = new THREE.Camera();
  readonly #controls: OrbitControls;
  readonly #key = new THREE.DirectionalLight(0xfff4e8, 2.2);
  readonly #clay = new THREE.MeshStandardMaterial({ color: 0xb9a898, roughness: 0.7 });
  readonly #wire = new THREE.MeshBasicMaterial({ color: 0x5b8cff, wireframe: true });
  #head: Head | null = null;
  #look: Look = "relit";
  #throughPhoto = false;
  #requested = false;
  #twins: Viewer[] = [];

  constructor(readonly canvas: HTMLCanvasElement) {
    this.#renderer = new THREE.WebGLRenderer({ canvas, antialias: true, alpha: true, preserveDrawingBuffer: true });
    this.#renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
    const environment = new THREE.PMREMGenerator(this.#renderer);
    this.#scene.environment = environment.fromScene(new RoomEnvironment(), 0.04).texture;
    environment.dispose();
    this.#scene.environmentIntensity = 0.45;
    this.#scene.add(this.#key, this.#key.target);
    this.#controls = new OrbitControls(this.#camera, canvas);
    this.#controls.enablePan = false;
    this.#controls.addEventListener("change", () => {
      for (const twin of this.#twins) twin.#lookFrom(this.#camera.position, this.#controls.target);
      this.#request();
    });
    this.setLight(-35, 25);
    new ResizeObserver(() => this.#resize()).observe(canvas);
    canvas.addEventListener("keydown", (event) => this.#turnByKey(event));
    this.#dragLight();
  }

  get look(): Look {
    return this.#look;
  }

  /** Names of the head's expressions, in ARKit's order. */
  get expressions(): readonly string[] {
    return this.#head?.expressions ?? [];
  }

  /** Names of the sliders of the head's shape; files for others have none. */
  get shapes(): readonly string[] {
    return this.#head?.shapes ?? [];
  }

  /** How the head moves; null for a still one. */
  get motion(): Motion | null {
    return this.#head?.motion ?? null;
  }

  /** Strengths of the expressions as on the photo. */
  get photographed(): ReadonlyMap<string, number> {
    return this.#head?.photographed ?? new Map();
  }

  /** Show another head. The camera stays if there was one before, and so does `weights`.
   * @param glb Content of a head.glb or face.glb.
   */
  async load(glb: ArrayBuffer, weights?: ReadonlyMap<string, number>): Promise<void> {
    const head = await loadHead(glb);
    const first = this.#head === null;
    if (this.#head) {
      this.#scene.remove(this.#head.root);
      this.#head.dispose();
    }
    this.#head = head;
    this.#scene.add(head.root);
    this.setLook(this.#look);
    for (const [name, value] of weights ?? []) head.setStrength(name, value);
    if (first) this.setView("three-quarter");
    if (head.motion) head.motion.moved = () => this.#keepInSight();
    this.#request();
  }

  /** A moving head turns in the middle of the orbit; only the video's own camera sees it come and go. */
  #keepInSight(): void {
    const node = this.#head?.root.children[0];
    if (!this.#head?.motion || !node) return;
    if (this.#throughPhoto) this.#head.root.position.set(0, 0, 0);
    else this.#head.root.position.copy(node.position).negate();
    this.#request();
  }

  /** Set the strength of an expression or of a slider of the shape. */
  setStrength(name: string, value: number): void {
    this.#head?.setStrength(name, value);
    for (const twin of this.#twins) twin.#head?.setStrength(name, value);
    this.#request();
    for (const twin of this.#twins) twin.#request();
  }

  /** Show another head from the same side: cameras, looks, lights and strengths of both go together from now on. */
  pair(other: Viewer): void {
    this.#twins.push(other);
    other.#twins.push(this);
    other.setLook(this.#look);
    const { azimuth, elevation } = this.#key.userData as { azimuth: number; elevation: number };
    other.setLight(azimuth, elevation);
    other.#lookFrom(this.#camera.position, this.#controls.target);
  }

  setLook(look: Look): void {
    const changed = look !== this.#look;
    this.#look = look;
    // Khronos' neutral curve keeps skin colours; photo and albedo are shown as they are.
    const plain = look === "photo" || look === "albedo";
    this.#renderer.toneMapping = plain ? THREE.NoToneMapping : THREE.NeutralToneMapping;
    this.#head?.dress(look === "clay" ? this.#clay : look === "wireframe" ? this.#wire : look);
    if (changed) for (const twin of this.#twins) twin.setLook(look);
    this.#request();
  }

  /** Turn the camera about the head. */
  setView(view: View): void {
    if (!this.#head) return;
    const { centre, radius } = this.#head;
    const turn = THREE.MathUtils.degToRad(VIEWS[view]);
    const distance = (1.05 * radius) / Math.tan(THREE.MathUtils.degToRad(FIELD_OF_VIEW_DEG / 2));
    this.#controls.target.copy(centre);
    this.#controls.minDistance = 0.4 * distance;
    this.#controls.maxDistance = 3 * distance;
    this.#camera.position.set(Math.sin(turn), 0.04, Math.cos(turn)).multiplyScalar(distance).add(centre);
    this.#controls.update();
    this.#request();
  }

  /** Move the light: degrees to the right of the head, as seen from its front, and above it. */
  setLight(azimuth: number, elevation: number): void {
    const [a, e] = [azimuth, elevation].map((angle) =>
      THREE.MathUtils.degToRad(THREE.MathUtils.clamp(angle, -LIGHT_REACH_DEG * 2, LIGHT_REACH_DEG * 2)),
    ) as [number, number];
    this.#key.position.set(Math.sin(a) * Math.cos(e), Math.sin(e), Math.cos(a) * Math.cos(e));
    const before = this.#key.userData as { azimuth?: number; elevation?: number };
    this.#key.userData = { azimuth, elevation };
    if (before.azimuth !== azimuth || before.elevation !== elevation) {
      for (const twin of this.#twins) twin.setLight(azimuth, elevation);
    }
    this.#request();
  }

  /** See the head through the camera of the photo, or through the orbit again with null. */
  setPhotoCamera(camera: PhotoCamera | null): void {
    this.#throughPhoto = camera !== null;
    this.#controls.enabled = camera === null;
    this.#keepInSight();
    if (camera) {
      const [view, projection] = [camera.view, camera.projection].map((m) => new THREE.Matrix4().set(...matrix(m)));
      // By hand: three.js takes the scale out of a camera's matrix, and that of the face is in it.
      this.#photoCamera.matrixWorldAutoUpdate = false;
      this.#photoCamera.matrixWorldInverse.copy(view!);
      this.#photoCamera.matrixWorld.copy(view!).invert();
      this.#photoCamera.projectionMatrix.copy(projection!);
      this.#photoCamera.projectionMatrixInverse.copy(projection!).invert();
    }
    this.#request();
  }

  /** The present picture. */
  picture(): string {
    this.#draw();
    return this.canvas.toDataURL("image/png");
  }

  #lookFrom(place: THREE.Vector3, target: THREE.Vector3): void {
    if (place.equals(this.#camera.position) && target.equals(this.#controls.target)) return;
    this.#camera.position.copy(place);
    this.#controls.target.copy(target);
    this.#controls.update();
    this.#request();
  }

  #resize(): void {
    const { clientWidth, clientHeight } = this.canvas;
    if (clientWidth === 0 || clientHeight === 0) return;
    this.#renderer.setSize(clientWidth, clientHeight, false);
    this.#camera.aspect = clientWidth / clientHeight;
    // The shorter side has the field of view, so that a narrow picture shows the whole head from the same distance.
    const half = Math.tan(THREE.MathUtils.degToRad(FIELD_OF_VIEW_DEG / 2)) / Math.min(1, this.#camera.aspect);
    this.#camera.fov = 2 * THREE.MathUtils.radToDeg(Math.atan(half));
    this.#camera.updateProjectionMatrix();
    this.#draw();
  }

  #request(): void {
    if (this.#requested) return;
    this.#requested = true;
    requestAnimationFrame(() => this.#draw());
  }

  #draw(): void {
    this.#requested = false;
    this.#renderer.render(this.#scene, this.#throughPhoto ? this.#photoCamera : this.#camera);
  }

  #turnByKey(event: KeyboardEvent): void {
    const step: Record<string, [number, number]> = {
      ArrowLeft: [-10, 0],
      ArrowRight: [10, 0],
      ArrowUp: [0, -10],
      ArrowDown: [0, 10],
    };
    const turn = step[event.key];
    const zoom = { "+": 0.9, "-": 1 / 0.9 }[event.key] ?? 1;
    if ((!turn && zoom === 1) || !this.#controls.enabled) return;
    event.preventDefault();
    const offset = this.#camera.position.clone().sub(this.#controls.target).multiplyScalar(zoom);
    const place = new THREE.Spherical().setFromVector3(offset);
    place.theta += THREE.MathUtils.degToRad(turn?.[0] ?? 0);
    place.phi += THREE.MathUtils.degToRad(turn?.[1] ?? 0);
    place.makeSafe();
    this.#camera.position.copy(this.#controls.target).add(offset.setFromSpherical(place));
    this.#controls.update();
  }

  /** Dragging with the right button, or with Shift, moves the light. */
  #dragLight(): void {
    this.#controls.mouseButtons.RIGHT = null;
    this.canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 2 && !event.shiftKey) return;
      event.stopImmediatePropagation();
      this.canvas.setPointerCapture(event.pointerId);
      const from = { x: event.clientX, y: event.clientY, ...(this.#key.userData as { azimuth: number; elevation: number }) };
      const move = (to: PointerEvent) =>
        this.setLight(from.azimuth + (to.clientX - from.x) * 0.5, from.elevation - (to.clientY - from.y) * 0.5);
      this.canvas.addEventListener("pointermove", move);
      const end = () => this.canvas.removeEventListener("pointermove", move);
      this.canvas.addEventListener("pointerup", end, { once: true });
      this.canvas.addEventListener("pointercancel", end, { once: true });
    }, { capture: true });
  }
}

type Sixteen = Parameters<THREE.Matrix4["set"]>;

function matrix(rows: number[][]): Sixteen {
  const values = rows.flat();
  if (values.length !== 16) throw new Error(`a camera matrix has ${values.length} numbers instead of 16.`);
  return values as Sixteen;
}
