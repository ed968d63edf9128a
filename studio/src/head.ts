/** A head as a GLB file: its parts, expressions and looks. */

import * as THREE from "three";
import { GLTFLoader, type GLTF } from "three/addons/loaders/GLTFLoader.js";

import { Motion } from "./motion";

const VARIANTS = "KHR_materials_variants";

interface Dress {
  mesh: THREE.Mesh;
  relit: THREE.Material;
  photo: THREE.Material;
  /** The base colours without light. */
  albedo: THREE.Material;
}

/** What the names of a shape's morph targets have and those of expressions have not: `identity:1`, `phenotype:age`. */
const SHAPE_MARK = ":";

export class Head {
  readonly centre = new THREE.Vector3();
  readonly radius: number;
  readonly expressions: readonly string[];
  readonly shapes: readonly string[];
  readonly photographed: ReadonlyMap<string, number>;

  constructor(
    readonly root: THREE.Object3D,
    readonly dresses: readonly Dress[],
    /** How the head moves; null for a still head. */
    readonly motion: Motion | null,
  ) {
    const box = new THREE.Box3().setFromObject(root);
    box.getCenter(this.centre);
    this.radius = box.getSize(new THREE.Vector3()).y / 2;
    const weights = new Map<string, number>();
    for (const { mesh } of dresses) {
      for (const [name, index] of Object.entries(mesh.morphTargetDictionary ?? {})) {
        weights.set(name, mesh.morphTargetInfluences?.[index] ?? 0);
      }
    }
    this.expressions = [...weights.keys()].filter((name) => !name.includes(SHAPE_MARK));
    this.shapes = [...weights.keys()].filter((name) => name.includes(SHAPE_MARK));
    this.photographed = weights;
  }

  /** Set the strength of an expression, 0 to 1, or of a slider of the shape, −1 to 1. */
  setStrength(name: string, value: number): void {
    for (const { mesh } of this.dresses) {
      const index = mesh.morphTargetDictionary?.[name];
      if (index !== undefined && mesh.morphTargetInfluences) mesh.morphTargetInfluences[index] = value;
    }
  }

  /** Show a look of the file, or one material everywhere. */
  dress(material: "relit" | "photo" | "albedo" | THREE.Material): void {
    for (const one of this.dresses) one.mesh.material = typeof material === "string" ? one[material] : material;
  }

  dispose(): void {
    for (const { mesh, relit, photo, albedo } of this.dresses) {
      mesh.geometry.dispose();
      for (const material of new Set([relit, photo, albedo])) {
        for (const value of Object.values(material)) if (value instanceof THREE.Texture) value.dispose();
        material.dispose();
      }
    }
  }
}

/** Read a GLB file. */
export async function loadHead(glb: ArrayBuffer): Promise<Head> {
  const gltf = await new GLTFLoader().parseAsync(glb, "");
  const meshes: THREE.Mesh[] = [];
  gltf.scene.traverse((object) => {
    if (object instanceof THREE.Mesh) meshes.push(object);
  });
  return new Head(gltf.scene, await Promise.all(meshes.map((mesh) => dressOf(gltf, mesh))), Motion.of(gltf));
}

async function dressOf(gltf: GLTF, mesh: THREE.Mesh): Promise<Dress> {
  mesh.frustumCulled = false; // expressions move vertices beyond the bounding sphere
  const own = mesh.material as THREE.Material;
  const relit = (await variantOf(gltf, mesh, "relit")) ?? own;
  const photo = (await variantOf(gltf, mesh, "photo")) ?? unlit(own);
  return { mesh, relit, photo, albedo: unlit(relit) };
}

async function variantOf(gltf: GLTF, mesh: THREE.Mesh, name: string): Promise<THREE.Material | null> {
  const variants: { name: string }[] = gltf.userData["gltfExtensions"]?.[VARIANTS]?.variants ?? [];
  const index = variants.findIndex((variant) => variant.name === name);
  const mappings: { material: number; variants: number[] }[] =
    mesh.userData["gltfExtensions"]?.[VARIANTS]?.mappings ?? [];
  const mapping = mappings.find((one) => one.variants.includes(index));
  if (!mapping) return null;
  const material: THREE.Material = await gltf.parser.getDependency("material", mapping.material);
  const before = mesh.material;
  mesh.material = material;
  gltf.parser.assignFinalMaterial(mesh); // for tangents and vertex colours
  const final = mesh.material as THREE.Material;
  mesh.material = before;
  return final;
}

/** The colours of a material without light. */
function unlit(material: THREE.Material): THREE.Material {
  if (!(material instanceof THREE.MeshStandardMaterial)) return material;
  const { map, color, side, vertexColors } = material;
  return new THREE.MeshBasicMaterial({ map, color, side, vertexColors });
}
