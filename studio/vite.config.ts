import { defineConfig } from "vite";

// The page that the wheel ships; mien serves it at /studio/.
export default defineConfig({
  base: "/studio/",
  build: { outDir: "../src/mien/studio/static", emptyOutDir: true, target: "es2022", assetsInlineLimit: 0 },
});
